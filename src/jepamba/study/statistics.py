"""Paired differences by seed, with Student's t intervals.

Two configurations that share a seed share their data order and their random draws, so what the seed does to both of
them cancels in the difference of the pair; the spread of these differences says how far their mean can be trusted.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MIN_PAIRS = 3
"""With fewer paired seeds nothing is called a difference: two values always lie on some side of zero."""

Verdict = Literal["lower", "higher", "no difference shown", "too few pairs"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (value − baseline, in the values' unit) with its confidence interval."""

    mean: float
    low: float
    """Lower end of the interval; −inf where there are fewer than two pairs."""
    high: float
    """Upper end; +inf where there are fewer than two pairs."""
    sd: float
    """Standard deviation of one pair's difference; 0 for a single pair."""
    n: int
    """Number of paired seeds."""

    @property
    def verdict(self) -> Verdict:
        """`lower` or `higher` where the whole interval lies on one side of 0 and there are pairs enough to say so."""
        if self.n < MIN_PAIRS:
            return "too few pairs"
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "no difference shown"


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """The difference over the seeds (keys) that both have; None where they share none.

    The interval is mean ± t_{(1 + confidence)/2, n−1} · sd / √n.
    """
    from scipy import stats  # takes a second to import, and most commands compare nothing

    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    n = len(differences)
    if n == 0:
        return None
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(mean, -math.inf, math.inf, 0.0, 1)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (n - 1))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * sd / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, sd, n)


def interpolate(curve: list[tuple[float, float]], x: float) -> float | None:
    """y at `x` on the line through the points (x ascending) of `curve`; None outside its range."""
    if not curve or not curve[0][0] <= x <= curve[-1][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1]
