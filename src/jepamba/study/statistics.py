"""Paired differences by seed with Student's t intervals.

Runs with the same seed share the data order and the random numbers. The common effect of the seed cancels in their
difference. The spread of the differences gives the uncertainty of their mean.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

MIN_PAIRS = 3
"""Minimum number of pairs for a verdict: the signs of two differences agree too often by chance."""

Verdict = Literal["lower", "higher", "no difference shown", "too few pairs"]


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences (value − baseline, in the unit of the values) with its confidence interval."""

    mean: float
    low: float
    """Lower end of the interval; −inf with fewer than two pairs."""
    high: float
    """Upper end; +inf with fewer than two pairs."""
    sd: float
    """Standard deviation of the differences; 0 for a single pair."""
    n: int
    """Number of paired seeds."""

    @property
    def verdict(self) -> Verdict:
        """`lower` or `higher` if the interval excludes 0 and there are at least `MIN_PAIRS` pairs."""
        if self.n < MIN_PAIRS:
            return "too few pairs"
        if self.high < 0:
            return "lower"
        return "higher" if self.low > 0 else "no difference shown"


def paired_difference(
    values: Mapping[int, float], baseline: Mapping[int, float], confidence: float = 0.95
) -> Difference | None:
    """Return the paired difference over the seeds (keys) that both share; None if they share none.

    The interval is mean ± t_{(1 + confidence)/2, n−1} · sd / √n.
    """
    from scipy import stats  # imported here because it takes a second

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
    """Interpolate `curve` (points in order of x) linearly at `x`. Returns None outside its range."""
    if not curve or not curve[0][0] <= x <= curve[-1][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1]
