"""The report of a study: paired differences with confidence intervals as Markdown, SVG and JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.progress import duration
from jepamba.report.charts import Line, interval_chart, line_chart, standalone
from jepamba.report.records import number
from jepamba.study.compare import MEASURES, Curve, Measure, Pair, Result, compare, results
from jepamba.study.plan import Plan, load_plan
from jepamba.study.statistics import MIN_PAIRS, Difference, paired_difference

TITLES: dict[Measure, str] = {
    "steps": "At equal steps",
    "time": "At equal time",
    "artifact": "Finished artifacts",
}
_EXPLANATIONS: dict[Measure, str] = {
    "steps": "Validation BPB at the last step at which both runs of a pair were validated.",
    "time": "Validation BPB at the largest training time that both runs of a pair reached, interpolated linearly "
    "between validations. A run that is compared before its end has not completed its learning-rate warmdown. To "
    "compare at equal time, give the plan a budget in `train.seconds`.",
    "artifact": "BPB of the packed artifact as read back, at its calibrated temperature, in plain windows over all "
    "validation text.",
}


@dataclass(frozen=True)
class Comparison:
    """A configuration compared with the baseline by one measure."""

    name: str
    measure: Measure
    pairs: tuple[Pair, ...]
    difference: Difference | None
    """BPB of the configuration − BPB of the baseline; None without pairs."""


@dataclass(frozen=True)
class Study:
    """A study, possibly unfinished: its plan, its results so far and their comparisons."""

    plan: Plan
    results: list[Result]
    comparisons: list[Comparison]


def read_study(out: Path) -> Study:
    """Read the study in the folder `out`. Raises `UserError` if there is none."""
    if not (out / "plan.toml").is_file():
        raise UserError(f"{out}: no study here (no plan.toml); start one with `jepamba study run PLAN --out {out}`")
    plan = load_plan(out / "plan.toml")
    found = results(plan, out)
    by_name = {
        item.name: {result.seed: result for result in found if result.name == item.name} for item in plan.configurations
    }
    baseline = by_name[plan.baseline]
    comparisons = []
    for measure in MEASURES:
        for name, runs in by_name.items():
            if name != plan.baseline:
                shared = sorted(runs.keys() & baseline.keys())
                pairs = [pair for s in shared if (pair := compare(runs[s], baseline[s], measure)) is not None]
                difference = paired_difference(
                    {pair.seed: pair.value for pair in pairs}, {pair.seed: pair.baseline for pair in pairs}
                )
                comparisons.append(Comparison(name, measure, tuple(pairs), difference))
    return Study(plan, found, comparisons)


def report_study(out: Path) -> str:
    """Write report.md, report.json, differences.svg and curves.svg into the folder `out`.

    The report lists unfinished runs and includes their results so far.
    Returns: the Markdown.
    Raises: `UserError` if `out` holds no study.
    """
    study = read_study(out)
    text = markdown(study)
    (out / "differences.svg").write_text(standalone(_differences(study)), encoding="utf-8")
    (out / "curves.svg").write_text(standalone(_curves(study)), encoding="utf-8")
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
                "verdict": item.difference.verdict if item.difference else "no pairs",
                "pairs": [asdict(pair) for pair in item.pairs],
            }
            for item in study.comparisons
        ],
        "runs": [
            {"configuration": item.name, "seed": item.seed, "finished": item.summary is not None, **_run_results(item)}
            for item in study.results
        ],
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
        "",
        *_table(["configuration", "settings"], [[item.name, _settings(item.settings)] for item in plan.configurations]),
        "",
        *_unfinished(study),
        "Differences are in bits per byte (BPB) of held-out text, configuration minus baseline: negative is better. "
        "The two runs of a pair share their seed and therefore the order of the data. The interval is the 95 % "
        "Student t interval of the mean difference, not corrected for the number of comparisons. "
        f"Fewer than {MIN_PAIRS} pairs give no verdict.",
        "",
    ]
    for measure in MEASURES:
        lines += [f"## {TITLES[measure]}", "", _EXPLANATIONS[measure], "", *_comparison_table(study, measure), ""]
    lines += ["![Differences with intervals](differences.svg)", "", "![Validation curves](curves.svg)", ""]
    lines += ["## Runs", "", *_run_table(study), ""]
    return "\n".join(lines)


def _comparison_table(study: Study, measure: Measure) -> list[str]:
    rows = []
    for item in study.comparisons:
        if item.measure == measure:
            found = item.difference
            if found is None:
                rows.append([item.name, "–", "–", "–", "–", "0", "no pairs"])
                continue
            value, base = (statistics.fmean(getattr(pair, key) for pair in item.pairs) for key in ("value", "baseline"))
            interval = f"[{found.low:+.4f}, {found.high:+.4f}]" if math.isfinite(found.low) else "–"
            rows.append(
                [item.name, f"{value:.4f}", f"{base:.4f}", f"{found.mean:+.4f}", interval, str(found.n), found.verdict]
            )
    heads = [
        "configuration",
        "BPB",
        f"{study.plan.baseline}, same seeds",
        "difference",
        "95 % interval",
        "n",
        "verdict",
    ]
    return _table(heads, rows)


def _run_table(study: Study) -> list[str]:
    rows = []
    for item in study.results:
        values = _run_results(item)
        seconds = values["seconds"]
        rows.append(
            [
                item.name,
                str(item.seed),
                _format(values["bpb_plain"], ".4f"),
                _format(values["bpb_calibrated"], ".4f"),
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


def _run_results(result: Result) -> dict[str, float | None]:
    found = result.summary or {}
    plain, calibrated, parameters = (
        value if isinstance(value := found.get(key), dict) else {}
        for key in ("bpb_plain", "bpb_calibrated", "parameters")
    )
    return {
        "bpb_plain": number(plain.get("bpb")),
        "bpb_calibrated": number(calibrated.get("bpb")),
        "steps": number(found.get("steps")),
        "seconds": number(found.get("seconds")),
        "parameters_kept": number(parameters.get("kept")),
        "artifact_bytes": number(found.get("artifact_bytes")),
    }


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
    """Draw the validation BPB of each configuration over steps, averaged over the seeds with that step.

    Validations of another text than those of the longest curve, as the final one of all validation text, are points
    of their own.
    """
    lines = []
    for item in study.plan.configurations:
        curves = [result.curves for result in study.results if result.name == item.name and result.curves]
        # Of equally many validations, those of the most text.
        longest = [max((len(curve), size) for size, curve in by_size.items())[1] for by_size in curves]
        lines.append(Line(item.name, _mean_curve([c[size] for c, size in zip(curves, longest, strict=True)])))
        whole = [c[max(c)] for c, size in zip(curves, longest, strict=True) if max(c) != size]
        lines.append(Line(f"{item.name}, all validation text", _mean_curve(whole)))
    return line_chart(f"{study.plan.name}: validation, mean of seeds", "step", "BPB", lines, dots=True)


def _mean_curve(curves: Sequence[Curve]) -> list[tuple[float, float]]:
    """Return the points (step, BPB), averaged over the curves with that step."""
    by_step: dict[int, list[float]] = {}
    for curve in curves:
        for step, _seconds, bpb in curve:
            by_step.setdefault(step, []).append(bpb)
    return [(step, statistics.fmean(by_step[step])) for step in sorted(by_step)]


def _settings(settings: Any) -> str:
    return ", ".join(f"`{key} = {json.dumps(value)}`" for key, value in settings.items()) or "–"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _format(value: float | None, format_spec: str) -> str:
    return "–" if value is None else format(value, format_spec)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
