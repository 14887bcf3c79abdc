"""The measures of a study: BPB at equal steps, at equal time, and of the finished artifacts.

All are bits per byte (BPB) of held-out text; lower is better.

- Equal steps: the validation BPB of both runs at the last step at which both were validated.
- Equal time: T is the largest training time in seconds that both runs reached. The BPB of a run at T is interpolated
  linearly between its validations before and after T. Runs that are validated only at the end of the same budget in
  seconds have no such interval; their last validations are compared if their times differ by at most 1 %.
- Equal time in a plan with a time baseline, which is the baseline with more steps: see `time_pairs`. Every run has
  completed its warmdown.
- Artifact, carried: the BPB of the packed artifacts of two finished runs at their calibrated temperatures, in plain
  windows and with the state carried, whatever their steps.

Validations are comparable only if they score the same text. A curve therefore holds validations over one number of
bytes. Of the curves with a point in common, the one over the most bytes is used.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from jepamba.report.records import number
from jepamba.study.records import Curve, Result

Measure = Literal["steps", "time", "artifact", "carried"]
MEASURES: tuple[Measure, ...] = ("steps", "time", "artifact", "carried")
SCORES: dict[Measure, str] = {"artifact": "bpb_calibrated", "carried": "bpb_carried"}
"""The score in summary.json of the measures that compare finished artifacts."""

SAME_SECONDS = 0.01
"""Largest relative difference between two training times that count as equal."""
BEYOND = 0.25
"""How far beyond the two baselines the comparison at equal time may extrapolate, as a share of their distance."""


@dataclass(frozen=True)
class Pair:
    """The BPB of a configuration's run and of the baseline's run with the same seed."""

    seed: int
    value: float
    baseline: float
    at: float
    """The step or the second of the comparison; 0 for artifacts."""


def compare(run: Result, baseline: Result, measure: Measure) -> Pair | None:
    """Compare two runs by `measure`. Returns None if they have no point in common."""
    if measure in SCORES:
        value, base = score(run, SCORES[measure]), score(baseline, SCORES[measure])
        return None if value is None or base is None else Pair(run.seed, value, base, 0.0)
    for size in sorted(run.curves.keys() & baseline.curves.keys(), reverse=True):
        found = (_equal_steps if measure == "steps" else _equal_time)(run.curves[size], baseline.curves[size])
        if found is not None:
            return Pair(run.seed, *found)
    return None


def time_pairs(runs: Mapping[int, Result], baselines: Mapping[int, Result], longer: Mapping[int, Result]) -> list[Pair]:
    """Compare a configuration with the baseline at equal time, between the baseline and the baseline with more steps.

    Let r be the training time of the configuration relative to the baseline, and R that of the longer baseline, as
    medians over the seeds and without compilations. The baseline's BPB at r is on the line in the logarithm of the time
    through its BPB at 1 and at R. BPB is that of the artifact with the state carried, or in plain windows where one of
    the three runs has no carried score.

    Arguments: the finished runs of the configuration, of the baseline and of the longer baseline, by seed.
    Returns: one pair for each seed that all three share; none if log r is outside of 0 to log R by more than a
        quarter of log R.
    """
    finished = [{seed: run for seed, run in group.items() if run.steady_seconds} for group in (runs, baselines, longer)]
    seeds = sorted(finished[0].keys() & finished[1].keys() & finished[2].keys())
    if not seeds:
        return []
    time, base_time, longer_time = ([group[seed].steady_seconds or 0.0 for seed in seeds] for group in finished)
    ratio, longest = (
        statistics.median(a / b for a, b in zip(times, base_time, strict=True)) for times in (time, longer_time)
    )
    share = math.log(ratio) / math.log(longest) if longest > 1 else math.inf
    if not -BEYOND <= share <= 1 + BEYOND:
        return []
    pairs = []
    for seed, seconds in zip(seeds, time, strict=True):
        three = [group[seed] for group in finished]
        for name in ("bpb_carried", "bpb_calibrated"):
            value, short, long = (score(run, name) for run in three)
            if value is not None and short is not None and long is not None:
                pairs.append(Pair(seed, value, short + share * (long - short), seconds))
                break
    return pairs


def score(run: Result, name: str) -> float | None:
    """Return the BPB of the score `name` in the summary of `run`; None for an unfinished run."""
    found = (run.summary or {}).get(name)
    return number(found.get("bpb")) if isinstance(found, dict) else None


def _equal_steps(run: Curve, baseline: Curve) -> tuple[float, float, float] | None:
    values, base = ({step: bpb for step, _seconds, bpb in curve} for curve in (run, baseline))
    common = values.keys() & base.keys()
    if not common:
        return None
    last = max(common)
    return values[last], base[last], float(last)


def _bpb_after(second: float, curve: Curve) -> float:
    """The BPB of `curve` after `second` seconds, interpolated linearly; NaN outside its range.

    Of several validations at one time the last counts.
    """
    _steps, seconds, bpb = zip(*curve, strict=True)
    return float(np.interp(second, seconds, bpb, left=np.nan, right=np.nan))


def _equal_time(run: Curve, baseline: Curve) -> tuple[float, float, float] | None:
    second = min(run[-1][1], baseline[-1][1])
    value, base = (_bpb_after(second, curve) for curve in (run, baseline))
    if math.isfinite(value) and math.isfinite(base):
        return value, base, second
    if abs(run[-1][1] - baseline[-1][1]) <= SAME_SECONDS * second:
        return run[-1][2], baseline[-1][2], second
    return None
