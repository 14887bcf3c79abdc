"""The runs of a study as rows: for runs.csv, for report.json and for the table of report.md."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from jepamba.config import BUDGETS
from jepamba.report.records import number
from jepamba.study.compare import score
from jepamba.study.plan import Plan
from jepamba.study.records import Result

CSV_COLUMNS = {
    "study": "study",
    "arm": "configuration",
    "seed": "seed",
    "budget": "budget",
    "steps": "steps",
    "seconds": "seconds",
    "steady_seconds": "steady_seconds",
    "bpb_plain": "bpb_plain",
    "bpb_carried": "bpb_carried",
    "device": "device",
}
"""Columns of runs.csv, each with its name in `run_values`."""


def run_values(plan: Plan, result: Result) -> dict[str, Any]:
    """Return the figures of one run by name; None for what is not known, as in an unfinished run.

    `seconds` are those of training, `steady_seconds` those without compilations and graph captures.
    """
    found = result.summary or {}
    parameters, environment = (value if isinstance(value := found.get(key), dict) else {} for key in _DICTIONARIES)
    configuration = next(item for item in plan.configurations if item.name == result.name)
    train = plan.run(configuration, result.seed).train
    return {
        "study": plan.name,
        "configuration": result.name,
        "seed": result.seed,
        "finished": result.summary is not None,
        "budget": ", ".join(f"{value:g} {name}" for name in BUDGETS if (value := getattr(train, name))),
        "bpb_plain": score(result, "bpb_plain"),
        "bpb_calibrated": score(result, "bpb_calibrated"),
        "bpb_carried": score(result, "bpb_carried"),
        "steps": number(found.get("steps")),
        "seconds": number(found.get("seconds")),
        "steady_seconds": result.steady_seconds,
        "parameters_kept": number(parameters.get("kept")),
        "artifact_bytes": number(found.get("artifact_bytes")),
        "device": device_name(str(environment.get("device", ""))),
    }


_DICTIONARIES = ("parameters", "environment")


def device_name(why: str) -> str:
    """Return the name of the device in the sentence of `choose_device`; the sentence itself if it has another form."""
    match = re.match(r"computing on (.*?)(?:, \d+ threads?\b.*)? in (?:fp32|bf16)\b", why)
    return match[1] if match else why


def runs_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Return the finished runs among `rows` (of `run_values`) as CSV, with the columns `CSV_COLUMNS`."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for row in rows:
        if row["finished"]:
            writer.writerow([_cell(row[name]) for name in CSV_COLUMNS.values()])
    return out.getvalue()


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return str(round(value, 5)).removesuffix(".0") if isinstance(value, float) else str(value)
