"""The three measures of a study: BPB at equal steps, at equal time, and of the finished artifacts.

All three are bits per byte (BPB) of held-out text; lower is better.

- Equal steps: the validation BPB of both runs at the last step at which both were validated.
- Equal time: T is the largest training time in seconds that both runs reached. The BPB of a run at T is interpolated
  linearly between its validations before and after T. Runs that are validated only at the end of the same budget in
  seconds have no such interval; their last validations are compared if their times differ by at most 1 %.
- Artifact: the BPB of the packed artifacts of two finished runs at their calibrated temperatures.

Validations are comparable only if they score the same text. A curve therefore holds validations over one number of
bytes. Of the curves with a point in common, the one over the most bytes is used.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from jepamba.report.records import Metrics, Record, number, read_metrics, read_summary
from jepamba.study.plan import Plan
from jepamba.study.run import planned_runs
from jepamba.study.statistics import interpolate

Measure = Literal["steps", "time", "artifact"]
MEASURES: tuple[Measure, ...] = ("steps", "time", "artifact")

SAME_SECONDS = 0.01
"""Largest relative difference between two training times that count as equal."""

Curve = list[tuple[int, float, float]]
"""Validations as (step, seconds, BPB), steps ascending."""


@dataclass(frozen=True)
class Result:
    """The validation curves and the summary of one run."""

    name: str
    seed: int
    curves: dict[int, Curve]
    """Validation curves by the number of bytes that they score."""
    summary: Record | None
    """None for an unfinished run."""


@dataclass(frozen=True)
class Pair:
    """The BPB of a configuration's run and of the baseline's run with the same seed."""

    seed: int
    value: float
    baseline: float
    at: float
    """The step or the second of the comparison; 0 for artifacts."""


def results(plan: Plan, out: Path) -> list[Result]:
    """Return the results of all runs of `plan` that have started in the folder `out`."""
    return [
        Result(run.name, run.seed, curves(read_metrics(run.folder / "metrics.jsonl")), read_summary(run.folder))
        for run in planned_runs(plan, out)
        if run.folder.is_dir()
    ]


def curves(metrics: Metrics) -> dict[int, Curve]:
    """Return the validation curves by the number of bytes that they score. Skips incomplete records."""
    found: dict[int, Curve] = defaultdict(list)
    for record in metrics.vals:
        size, seconds, bpb = (number(record.get(key)) for key in ("bytes", "seconds", "bpb"))
        if size is not None and seconds is not None and bpb is not None:
            found[int(size)].append((record["step"], seconds, bpb))
    return dict(found)


def compare(run: Result, baseline: Result, measure: Measure) -> Pair | None:
    """Compare two runs by `measure`. Returns None if they have no point in common."""
    if measure == "artifact":
        value, base = artifact_bpb(run), artifact_bpb(baseline)
        return None if value is None or base is None else Pair(run.seed, value, base, 0.0)
    for size in sorted(run.curves.keys() & baseline.curves.keys(), reverse=True):
        found = (_equal_steps if measure == "steps" else _equal_time)(run.curves[size], baseline.curves[size])
        if found is not None:
            return Pair(run.seed, *found)
    return None


def artifact_bpb(run: Result) -> float | None:
    """Return the BPB of the artifact at its calibrated temperature in plain windows; None for an unfinished run."""
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
