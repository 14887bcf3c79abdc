"""What the runs of a study are compared by: at equal steps, at equal time, and as finished artifacts.

All three are bits per byte (BPB) of held-out text; lower is better.

- Equal steps: the validation BPB of both runs at the last step at which both were validated.
- Equal time: T is the largest second of training that both runs of the pair reached; each run's BPB at T is read off
  the straight line between the validations before and after T. Where that line is missing, as for runs that are
  validated once, at the end of the same budget in seconds, their last validations serve if their times differ by at
  most 1 %.
- Artifact: what the packed artifacts of two finished runs score at their calibrated temperatures.

Two validations are comparable only if they score the same text. A curve therefore holds validations of one number of
bytes; of the curves that both runs have, the one that scores most text and has a common point decides.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jepamba.report.records import Metrics, Record, number, read_metrics, read_summary
from jepamba.study.plan import Plan
from jepamba.study.run import cells
from jepamba.study.statistics import interpolate

Measure = Literal["steps", "time", "artifact"]
MEASURES: tuple[Measure, ...] = ("steps", "time", "artifact")

SAME_SECONDS = 0.01
"""Relative difference up to which two times of training are the same time."""

Curve = list[tuple[int, float, float]]
"""Validations as (step, seconds, BPB), steps ascending."""


@dataclass(frozen=True)
class Result:
    """What one run of a study has to show."""

    name: str
    seed: int
    curves: dict[int, Curve]
    """By the bytes of text that their validations score."""
    summary: Record | None
    """None for a run that is not finished."""


@dataclass(frozen=True)
class Pair:
    """The BPB of a configuration's run and of the baseline's run with the same seed."""

    seed: int
    value: float
    baseline: float
    at: float
    """Where they are compared: the step, the second, or 0 for artifacts."""


def results(plan: Plan, out: Path) -> list[Result]:
    """The results of every run of `plan` that has begun under `out`."""
    return [
        Result(cell.name, cell.seed, curves(read_metrics(cell.folder / "metrics.jsonl")), read_summary(cell.folder))
        for cell in cells(plan, out)
        if cell.folder.is_dir()
    ]


def curves(metrics: Metrics) -> dict[int, Curve]:
    """The validation curves by the bytes of text that they score; incomplete records are left out."""
    found: dict[int, Curve] = defaultdict(list)
    for record in metrics.vals:
        size, seconds, bpb = (number(record.get(key)) for key in ("bytes", "seconds", "bpb"))
        if size is not None and seconds is not None and bpb is not None:
            found[int(size)].append((record["step"], seconds, bpb))
    return dict(found)


def compare(run: Result, baseline: Result, measure: Measure) -> Pair | None:
    """The two runs by `measure`; None where they have no point in common."""
    if measure == "artifact":
        value, base = artifact_bpb(run), artifact_bpb(baseline)
        return None if value is None or base is None else Pair(run.seed, value, base, 0.0)
    for size in sorted(run.curves.keys() & baseline.curves.keys(), reverse=True):
        found = (_equal_steps if measure == "steps" else _equal_time)(run.curves[size], baseline.curves[size])
        if found is not None:
            return Pair(run.seed, *found)
    return None


def artifact_bpb(run: Result) -> float | None:
    """BPB of the run's artifact at its calibrated temperature, plain windows; None for an unfinished run."""
    score = (run.summary or {}).get("bpb_calibrated")
    return number(score.get("bpb")) if isinstance(score, dict) else None


def _equal_steps(run: Curve, baseline: Curve) -> tuple[float, float, float] | None:
    values, base = ({step: bpb for step, _seconds, bpb in curve} for curve in (run, baseline))
    common = values.keys() & base.keys()
    if not common:
        return None
    last = max(common)
    return values[last], base[last], float(last)


def _equal_time(run: Curve, baseline: Curve) -> tuple[float, float, float] | None:
    second = min(run[-1][1], baseline[-1][1])
    value, base = (interpolate([(seconds, bpb) for _step, seconds, bpb in curve], second) for curve in (run, baseline))
    if value is not None and base is not None:
        return value, base, second
    if abs(run[-1][1] - baseline[-1][1]) <= SAME_SECONDS * second:
        return run[-1][2], baseline[-1][2], second
    return None
