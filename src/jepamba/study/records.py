"""What a run left in its folder, read without trust: a run may be in progress, and a crash may cut a line in two."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """The lines of a metrics.jsonl by kind, each kind in order of its step, one line a step."""

    steps: list[Record] = field(default_factory=list)
    terms: list[Record] = field(default_factory=list)
    vals: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    broken: int = 0
    """Lines that are no JSON object with a kind and a step."""


def read_metrics(path: Path) -> Metrics:
    """The metrics in `path`; empty where there is no such file. Broken lines are counted and passed over.

    Where a step occurs twice, as after a crash between two checkpoints, its last line counts.
    """
    by_kind: dict[str, dict[int, Record]] = {"step": {}, "terms": {}, "val": {}}
    events: list[Record] = []
    broken = 0
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return Metrics()
    for line in filter(str.strip, lines):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            broken += 1
        elif record.get("kind") == "event":
            events.append(record)
        elif record.get("kind") in by_kind:
            by_kind[record["kind"]][record["step"]] = record
    ordered = {kind: [records[step] for step in sorted(records)] for kind, records in by_kind.items()}
    return Metrics(ordered["step"], ordered["terms"], ordered["val"], events, broken)


def read_summary(run_dir: Path) -> Record | None:
    """The run's summary.json, or None where the run has not finished (no file, or not a JSON object)."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def read_config(run_dir: Path) -> Record | None:
    """The run's config.toml as nested dictionaries, or None where it is missing or broken."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else (missing, text, NaN, infinity)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def series(records: Iterable[Record], x: str, y: str) -> list[tuple[float, float]]:
    """The (x, y) of those records in which both are finite numbers."""
    points = ((number(record.get(x)), number(record.get(y))) for record in records)
    return [(a, b) for a, b in points if a is not None and b is not None]
