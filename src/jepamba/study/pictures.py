"""The pictures of a study: differences with intervals, and mean validation curves."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Literal

from jepamba.report.charts import interval_chart
from jepamba.report.plots import Line, line
from jepamba.study.records import Curve
from jepamba.study.results import Study
from jepamba.study.tables import TITLES


def differences(study: Study) -> str:
    """Draw the mean differences with their intervals as an `<svg>` element."""
    rows = []
    for item in study.comparisons:
        if item.difference is not None:
            singles = [(pair.value - pair.baseline, 0.0) for pair in item.pairs]
            label = f"{item.name}, {TITLES[item.measure].lower()}"
            rows.append((label, item.difference.mean, item.difference.low, item.difference.high, singles))
    title = f"{study.plan.name}: difference to {study.plan.baseline}"
    return interval_chart(title, rows)


def curve_lines(study: Study, x: Literal["step", "seconds"] = "step") -> list[Line]:
    """Return the validation BPB of each configuration, averaged over the seeds with that step.

    Validations of another text than those of the longest curve, as the final one of all validation text, are points
    of their own.
    """
    lines = []
    for index, item in enumerate(study.plan.configurations):
        curves = [result.curves for result in study.results if result.name == item.name and result.curves]
        # Of equally many validations, those of the most text.
        longest = [max((len(curve), size) for size, curve in by_size.items())[1] for by_size in curves]
        main = [c[size] for c, size in zip(curves, longest, strict=True)]
        whole = [c[max(c)] for c, size in zip(curves, longest, strict=True) if max(c) != size]
        lines.append(line(item.name, _mean_curve(main, x), index, dots=True))
        lines.append(line(f"{item.name}, all validation text", _mean_curve(whole, x), index, dots=True))
    return lines


def _mean_curve(curves: Sequence[Curve], x: Literal["step", "seconds"]) -> list[tuple[float, float]]:
    """Return the points (step or seconds, BPB), averaged over the curves with that step."""
    by_step: dict[int, list[tuple[float, float]]] = {}
    for curve in curves:
        for step, seconds, bpb in curve:
            by_step.setdefault(step, []).append((float(step) if x == "step" else seconds, bpb))
    return [
        (statistics.fmean(at for at, _ in by_step[step]), statistics.fmean(bpb for _, bpb in by_step[step]))
        for step in sorted(by_step)
    ]
