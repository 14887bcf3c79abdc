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


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for a, b > 0 and 0 <= x <= 1.

    Its continued fraction (DLMF 8.17.22), evaluated by the modified Lentz method (Thompson & Barnett 1986); the
    fraction converges fast for x < (a + 1)/(a + b + 2), and I_x(a, b) = 1 − I_{1−x}(b, a) serves the rest.
    """
    if x <= 0.0 or x >= 1.0:
        return min(max(x, 0.0), 1.0)
    if x > (a + 1) / (a + b + 2):
        return 1.0 - incomplete_beta(b, a, 1.0 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for k in range(1000):
        m = k // 2
        if k == 0:
            term = 1.0
        elif k % 2 == 0:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        else:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        d = 1.0 / (1.0 + term * d or tiny)
        c = 1.0 + term / c or tiny
        value *= c * d
        if k > 0 and abs(c * d - 1.0) < 1e-15:
            break
    return math.exp(log_front) / a * (value - 1.0)


def t_cdf(t: float, df: float) -> float:
    """P(T <= t) of Student's t with `df` > 0 degrees of freedom (DLMF 8.17.4 and its symmetry)."""
    square = t * t
    if square < df:
        # What lies between 0 and t: near the middle the tails' own argument would round to 1.
        return 0.5 + math.copysign(0.5 * incomplete_beta(0.5, df / 2, square / (df + square)), t)
    tail = 0.5 * incomplete_beta(df / 2, 0.5, df / (df + square))
    return 1.0 - tail if t > 0 else tail


def t_quantile(p: float, df: float) -> float:
    """The t with P(T <= t) = p, 0 < p < 1, by bisection to the last bit of a double. `ValueError` outside."""
    if not 0.0 < p < 1.0 or not df > 0:
        raise ValueError(f"t_quantile needs 0 < p < 1 and df > 0, not p = {p}, df = {df}")
    if p < 0.5:
        return -t_quantile(1.0 - p, df)
    low, high = 0.0, 1.0
    while t_cdf(high, df) < p:
        low, high = high, 2 * high
    while (middle := 0.5 * (low + high)) not in (low, high):
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return high


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
    seeds = sorted(values.keys() & baseline.keys())
    differences = [values[seed] - baseline[seed] for seed in seeds]
    n = len(differences)
    if n == 0:
        return None
    mean = math.fsum(differences) / n
    if n == 1:
        return Difference(mean, -math.inf, math.inf, 0.0, 1)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in differences) / (n - 1))
    half = t_quantile(0.5 + confidence / 2, n - 1) * sd / math.sqrt(n)
    return Difference(mean, mean - half, mean + half, sd, n)


def interpolate(curve: list[tuple[float, float]], x: float) -> float | None:
    """y at `x` on the line through the points (x ascending) of `curve`; None outside its range."""
    if not curve or not curve[0][0] <= x <= curve[-1][0]:
        return None
    for (x0, y0), (x1, y1) in itertools.pairwise(curve):
        if x0 <= x <= x1:
            return y1 if x1 == x0 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    return curve[0][1]
