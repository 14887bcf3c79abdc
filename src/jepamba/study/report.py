"""The report of a study: paired differences with confidence intervals as a page, Markdown, SVG and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jepamba.report.charts import line_chart, standalone
from jepamba.study.compare import MEASURES
from jepamba.study.page import study_page
from jepamba.study.pictures import curve_lines, differences
from jepamba.study.results import Study, read_study
from jepamba.study.run_table import run_values, runs_csv
from jepamba.study.tables import (
    TITLES,
    comparison_table,
    explanation,
    notes,
    pairs_needed,
    remarks,
    run_table,
    settings_text,
    smallest_effect_of,
)


def report_study(out: Path) -> str:
    """Write report.html, report.md, report.json, runs.csv, differences.svg and curves.svg into the folder `out`.

    The report lists unfinished runs and includes their results so far.
    Returns: the Markdown.
    Raises: `UserError` if `out` holds no study.
    """
    study = read_study(out)
    text = markdown(study)
    (out / "differences.svg").write_text(standalone(differences(study)), encoding="utf-8")
    curves = line_chart(f"{study.plan.name}: validation, mean of seeds", "step", "BPB", curve_lines(study), dots=True)
    (out / "curves.svg").write_text(standalone(curves), encoding="utf-8")
    (out / "report.html").write_text(study_page(study), encoding="utf-8", errors="replace")
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
                "smallest_effect": smallest_effect_of(item.difference, study.plan.alpha),
                "pairs_for_half_width": pairs_needed(item.difference),
                "verdict": item.difference.verdict(study.plan.alpha) if item.difference else "no pairs",
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
        *([f"Common settings: {settings_text(plan.settings, '`')}."] if plan.settings else []),
        *([f"\nRule, fixed before the runs: {plan.rule}"] if plan.rule else []),
        *([f"\nCost: {plan.cost}"] if plan.cost else []),
        "",
        *_table(
            ["configuration", "settings"],
            [[item.name, settings_text(item.settings, "`")] for item in plan.configurations],
        ),
        "",
        *(line for heading, names in remarks(study).items() for line in (f"**{heading}:** {names}.", "")),
        notes(study),
        "",
    ]
    for measure in MEASURES:
        table = _table(*comparison_table(study, measure))
        lines += [f"## {TITLES[measure]}", "", explanation(study, measure), "", *table, ""]
    lines += ["![Differences with intervals](differences.svg)", "", "![Validation curves](curves.svg)", ""]
    lines += ["## Runs", "", *_table(*run_table(study)), ""]
    return "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
