"""The report of a study: paired differences with confidence intervals as Markdown, SVG and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepamba.progress import duration
from jepamba.report.charts import Line, interval_chart, line_chart, standalone
from jepamba.study.compare import MEASURES, Measure
from jepamba.study.results import Study, read_study
from jepamba.study.run_table import run_values, runs_csv
from jepamba.study.statistics import MIN_PAIRS, Difference, pairs_for, smallest_effect

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


def report_study(out: Path) -> str:
    """Write report.md, report.json, runs.csv, differences.svg and curves.svg into the folder `out`.

    The report lists unfinished runs and includes their results so far.
    Returns: the Markdown.
    Raises: `UserError` if `out` holds no study.
    """
    study = read_study(out)
    text = markdown(study)
    (out / "differences.svg").write_text(standalone(_differences(study)), encoding="utf-8")
    (out / "curves.svg").write_text(standalone(_curves(study)), encoding="utf-8")
    rows = [run_values(study.plan, result) for result in study.results]
    (out / "runs.csv").write_text(runs_csv(rows), encoding="utf-8")
    (out / "report.json").write_text(json.dumps(as_json(study), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (out / "report.md").write_text(text, encoding="utf-8")
    return text


def as_json(study: Study) -> dict[str, Any]:
    """Return the study for JSON. The interval of a single pair is null."""
    return {
        "plan": study.plan.to_dict(),
        "unit": "bits per byte, configuration minus baseline",
        "comparisons": [
            {
                "configuration": item.name,
                "measure": item.measure,
                "n": len(item.pairs),
                "difference": _finite(item.difference.mean) if item.difference else None,
                "low": _finite(item.difference.low) if item.difference else None,
                "high": _finite(item.difference.high) if item.difference else None,
                "sd": _finite(item.difference.sd) if item.difference else None,
                "p_t": item.difference.p_t if item.difference else None,
                "p_sign_flip": item.difference.p_flip if item.difference else None,
                "smallest_effect": _smallest_effect(item.difference),
                "pairs_for_half_width": _pairs_needed(item.difference),
                "verdict": item.difference.verdict if item.difference else "no pairs",
                "pairs": [asdict(pair) for pair in item.pairs],
            }
            for item in study.comparisons
        ],
        "runs": [run_values(study.plan, result) for result in study.results],
    }


def markdown(study: Study) -> str:
    """Return the report as Markdown, with links to the images that `report_study` writes."""
    plan = study.plan
    lines = [
        f"# Study {plan.name}",
        "",
        plan.question,
        "",
        f"Preset `{plan.preset}`; seeds {', '.join(map(str, plan.seeds))}; baseline **{plan.baseline}**.",
        *([f"Common settings: {_settings(plan.settings)}."] if plan.settings else []),
        *([f"\nRule, fixed before the runs: {plan.rule}"] if plan.rule else []),
        *([f"\nCost: {plan.cost}"] if plan.cost else []),
        "",
        *_table(["configuration", "settings"], [[item.name, _settings(item.settings)] for item in plan.configurations]),
        "",
        *_unfinished(study),
        "Differences are in bits per byte (BPB) of held-out text, configuration minus baseline: negative is better. "
        "The two runs of a pair share their seed and therefore the order of the data. The interval is the 95 % "
        "Student t interval of the mean difference, not corrected for the number of comparisons. "
        f"Fewer than {MIN_PAIRS} pairs give no verdict. sd is the standard deviation of the differences. The p values "
        "are those of the two-sided t test and of the permutation test by sign flips. The smallest effect is what a t "
        "test of these pairs at the 5 % level would show with a probability of 80 %. The last column is the number of "
        f"pairs for an interval of ± {HALF_WIDTH}.",
        "",
    ]
    for measure in MEASURES:
        explanation = _EXPLANATIONS[measure]
        if measure == "time" and plan.time_baseline:
            explanation = _TIME_BASELINE.format(plan.baseline, plan.time_baseline)
        lines += [f"## {TITLES[measure]}", "", explanation, "", *_comparison_table(study, measure), ""]
    lines += ["![Differences with intervals](differences.svg)", "", "![Validation curves](curves.svg)", ""]
    lines += ["## Runs", "", *_run_table(study), ""]
    return "\n".join(lines)


def _comparison_table(study: Study, measure: Measure) -> list[str]:
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
                    found.verdict,
                    _format(found.sd if found.n > 1 else None, ".4f"),
                    _format(found.p_t if found.n > 1 else None, ".2g"),
                    _format(found.p_flip if found.n > 1 else None, ".2g"),
                    _format(_smallest_effect(found), ".4f"),
                    _format(_pairs_needed(found), ",.0f"),
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
    return _table(heads, rows)


def _run_table(study: Study) -> list[str]:
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
    return _table(heads, rows)


def _unfinished(study: Study) -> list[str]:
    finished = {(item.name, item.seed) for item in study.results if item.summary is not None}
    unfinished = [
        f"{item.name}, seed {seed}"
        for seed in study.plan.seeds
        for item in study.plan.configurations
        if (item.name, seed) not in finished
    ]
    return [f"**Not finished:** {'; '.join(unfinished)}.", ""] if unfinished else []


def _differences(study: Study) -> str:
    rows = []
    for item in study.comparisons:
        if item.difference is not None:
            singles = [(pair.value - pair.baseline, 0.0) for pair in item.pairs]
            label = f"{item.name}, {TITLES[item.measure].lower()}"
            rows.append((label, item.difference.mean, item.difference.low, item.difference.high, singles))
    title = f"{study.plan.name}: difference to {study.plan.baseline}"
    return interval_chart(title, "BPB (below 0 is better); dot: mean, bar: 95 % interval, ticks: seeds", rows)


def _curves(study: Study) -> str:
    """Draw the validation BPB of each configuration over steps, averaged over the seeds with that step."""
    lines = []
    for item in study.plan.configurations:
        by_step: dict[int, list[float]] = {}
        for result in study.results:
            if result.name == item.name and result.curves:
                longest = max(result.curves.values(), key=len)
                for step, _seconds, bpb in longest:
                    by_step.setdefault(step, []).append(bpb)
        lines.append(Line(item.name, [(step, statistics.fmean(by_step[step])) for step in sorted(by_step)]))
    return line_chart(f"{study.plan.name}: validation, mean of seeds", "step", "BPB", lines, dots=True)


def _settings(settings: Any) -> str:
    return ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in settings.items()) or "–"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _format(value: float | None, format_spec: str) -> str:
    return "–" if value is None else format(value, format_spec)


def _smallest_effect(found: Difference | None) -> float | None:
    return smallest_effect(found.sd, found.n) if found is not None and found.n > 1 else None


def _pairs_needed(found: Difference | None) -> int | None:
    return pairs_for(found.sd, HALF_WIDTH) if found is not None and found.n > 1 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
