"""The tables of a study as text, for Markdown and for the page."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping
from typing import Any

from jepamba.progress import duration
from jepamba.study.compare import Measure
from jepamba.study.results import Study, same_program
from jepamba.study.run_table import run_values
from jepamba.study.statistics import MIN_PAIRS, Difference, pairs_for, smallest_effect

Table = tuple[list[str], list[list[str]]]
"""Headings and rows."""

ANOTHER_PROGRAM = "Not compared, because the baseline is of another version of jepamba"
"""Heading of a remark."""
HALF_WIDTH = 0.002
"""The half-width of an interval, in BPB, for which the report says how many pairs it takes."""
TITLES: dict[Measure, str] = {
    "steps": "At equal steps",
    "time": "At equal time",
    "artifact": "Finished artifacts",
    "carried": "Finished artifacts, state carried",
}
_EXPLANATIONS: dict[Measure, str] = {
    "steps": "Validation BPB at the last step at which both runs of a pair were validated.",
    "time": "Validation BPB at the largest training time that both runs of a pair reached, interpolated linearly "
    "between validations. A run that is compared before its end has not completed its learning-rate warmdown. To "
    "compare at equal time, give the plan a budget in `train.seconds`.",
    "artifact": "BPB of the packed artifact as read back, at its calibrated temperature, in plain windows over all "
    "validation text, whatever the steps of the run.",
    "carried": "The same with the state carried through the text, of runs with `eval.carry`.",
}
_TIME_BASELINE = (
    "BPB of the finished artifacts (state carried if scored so) against the baseline trained for as long. The baseline "
    "at that time is read on the line in the logarithm of the time through `{}` and `{}`, both with a complete "
    "warmdown. The time of a configuration is the median over the seeds, without compilations."
)
_NOTES = (
    "Differences are in bits per byte (BPB) of held-out text, configuration minus baseline: negative is better. "
    "The two runs of a pair share their seed and therefore the order of the data. The interval is the 95 % "
    "Student t interval of the mean difference, not corrected for the number of comparisons. "
    f"The verdict is that of the t test at the level {{alpha:.3g}}; fewer than {MIN_PAIRS} pairs give none. "
    "sd is the standard deviation of the differences. The p values are those of the two-sided t test and of the "
    "permutation test by sign flips. The smallest effect is what a t test of these pairs at that level would show with "
    f"a probability of 80 %. The last column is the number of pairs for an interval of ± {HALF_WIDTH}."
)


def notes(study: Study) -> str:
    """Return how to read the tables of `comparison_table`, in sentences."""
    return _NOTES.format(alpha=study.plan.alpha)


def explanation(study: Study, measure: Measure) -> str:
    """Return what `measure` compares, in sentences."""
    plan = study.plan
    if measure == "time" and plan.time_baseline:
        return _TIME_BASELINE.format(plan.baseline, plan.time_baseline)
    return _EXPLANATIONS[measure]


def comparison_table(study: Study, measure: Measure) -> Table:
    """Return the comparisons of `study` by `measure`, one row a configuration."""
    rows = []
    for item in study.comparisons:
        if item.measure == measure:
            found = item.difference
            if found is None:
                rows.append([item.name, "–", "–", "–", "–", "0", "no pairs", *["–"] * 5])
                continue
            value, base = (statistics.fmean(getattr(pair, key) for pair in item.pairs) for key in ("value", "baseline"))
            interval = f"[{found.low:+.4f}, {found.high:+.4f}]" if math.isfinite(found.low) else "–"
            rows.append(
                [
                    item.name,
                    f"{value:.4f}",
                    f"{base:.4f}",
                    f"{found.mean:+.4f}",
                    interval,
                    str(found.n),
                    found.verdict(study.plan.alpha),
                    _format(found.sd if found.n > 1 else None, ".4f"),
                    _format(found.p_t if found.n > 1 else None, ".2g"),
                    _format(found.p_flip if found.n > 1 else None, ".2g"),
                    _format(smallest_effect_of(found, study.plan.alpha), ".4f"),
                    _format(pairs_needed(found), ",.0f"),
                ]
            )
    heads = [
        "configuration",
        "BPB",
        f"{study.plan.baseline}, same seeds",
        "difference",
        "95 % interval",
        "n",
        "verdict",
        "sd",
        "p, t",
        "p, flips",
        "smallest effect",
        f"n for ± {HALF_WIDTH}",
    ]
    return heads, rows


def run_table(study: Study) -> Table:
    """Return the figures of the runs of `study`, one row a run."""
    rows = []
    for item in study.results:
        values = run_values(study.plan, item)
        seconds = values["seconds"]
        rows.append(
            [
                item.name,
                str(item.seed),
                _format(values["bpb_plain"], ".4f"),
                _format(values["bpb_calibrated"], ".4f"),
                _format(values["bpb_carried"], ".4f"),
                _format(values["steps"], ",.0f"),
                "–" if seconds is None else duration(seconds),
                _format(values["parameters_kept"], ",.0f"),
                _format(values["artifact_bytes"], ",.0f"),
            ]
        )
    heads = [
        "configuration",
        "seed",
        "BPB plain",
        "BPB calibrated",
        "BPB carried",
        "steps",
        "training",
        "parameters",
        "artifact bytes",
    ]
    return heads, rows


def remarks(study: Study) -> dict[str, str]:
    """Return what the reader must know of runs before the tables: the names of runs by heading, without empty ones."""
    found = {"Not finished": _unfinished(study), ANOTHER_PROGRAM: _of_another_program(study)}
    return {heading: names for heading, names in found.items() if names}


def _unfinished(study: Study) -> str:
    """Return the names of the runs that are not finished, with commas; empty if there are none."""
    finished = {(item.name, item.seed) for item in study.results if item.summary is not None}
    return "; ".join(
        f"{item.name}, seed {seed}"
        for seed in study.plan.seeds
        for item in study.plan.configurations
        if (item.name, seed) not in finished
    )


def _of_another_program(study: Study) -> str:
    """Return the names of the runs whose program is not that of the baseline's run of their seed, with commas.

    Without the time baseline no configuration has a pair at equal time.
    """
    plan = study.plan
    baseline = {item.seed: item for item in study.results if item.name == plan.baseline}
    return "; ".join(
        f"{item.name}, seed {item.seed}" + (" (nor any other at equal time)" if item.name == plan.time_baseline else "")
        for item in study.results
        if item.seed in baseline and not same_program(item, baseline[item.seed])
    )


def settings_text(settings: Mapping[str, Any], quote: str = "") -> str:
    """Return `settings` in one line, each between two `quote`; a dash if there are none."""
    return ", ".join(f"{quote}{key} = {json.dumps(value)}{quote}" for key, value in settings.items()) or "–"


def _format(value: float | None, format_spec: str) -> str:
    return "–" if value is None else format(value, format_spec)


def smallest_effect_of(found: Difference | None, alpha: float) -> float | None:
    """Return the smallest effect (`smallest_effect`) of the pairs; None for fewer than two."""
    return smallest_effect(found.sd, found.n, alpha=alpha) if found is not None and found.n > 1 else None


def pairs_needed(found: Difference | None) -> int | None:
    """Return the number of pairs for an interval of ± `HALF_WIDTH`; None for fewer than two pairs."""
    return pairs_for(found.sd, HALF_WIDTH) if found is not None and found.n > 1 else None
