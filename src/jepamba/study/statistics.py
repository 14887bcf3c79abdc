"""Paired differences by seed: Student's t intervals, a permutation test, and the number of pairs that a study needs.

Runs with the same seed share the data order and the random numbers. The common effect of the seed cancels in their
difference. The spread of the differences gives the uncertainty of their mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

_EXACT_PAIRS = 20
"""Pairs up to which the permutation test counts all choices of signs."""
_QUANTILES = 10_000
"""Points of the average over the distribution of a standard deviation."""
_UPPER = 0.975
"""Upper quantile of a two-sided 95 % interval."""
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
    p_t: float = 1.0
    """Two-sided p value of the paired t test."""
    p_flip: float = 1.0
    """Two-sided p value of the sign-flip test; see `sign_flip_p`."""

    def verdict(self, alpha: float = 0.05) -> Verdict:
        """`lower` or `higher` if the t test has p < `alpha` and there are at least `MIN_PAIRS` pairs.

        At 0.05 that is where the interval excludes 0.
        """
        if self.n < MIN_PAIRS:
            return "too few pairs"
        if self.p_t >= alpha:
            return "no difference shown"
        return "lower" if self.mean < 0 else "higher"


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Return the paired difference over the seeds (keys) that both share, and its 95 % interval; None without one.

    The interval is mean ± t_{0.975, n−1} · sd / √n.
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
    half = half_width(sd, n)
    return Difference(mean, mean - half, mean + half, sd, n, _t_test_p(mean, sd, n), sign_flip_p(differences))


def _t_test_p(mean: float, sd: float, n: int) -> float:
    from scipy import stats

    if sd == 0:
        return 1.0 if mean == 0 else 0.0
    return float(2 * stats.t.sf(abs(mean) * math.sqrt(n) / sd, n - 1))


def half_width(sd: float, n: int) -> float:
    """Return t_{0.975, n−1} · sd / √n, half the width of the 95 % interval of `n` pairs; inf for one pair."""
    from scipy import stats  # imported here because it takes a second

    return float(stats.t.ppf(_UPPER, n - 1)) * sd / math.sqrt(n) if n > 1 else math.inf


def pairs_for(sd: float, half: float) -> int:
    """Return the smallest number of pairs whose interval has at most the half-width `half`, at least `MIN_PAIRS`."""
    if sd == 0:
        return MIN_PAIRS
    from scipy import stats

    # The normal quantile is below that of t: the search starts at too few pairs.
    n = max(MIN_PAIRS, math.floor((float(stats.norm.ppf(_UPPER)) * sd / half) ** 2))
    while half_width(sd, n) > half:
        n += 1
    return n


def smallest_effect(sd: float, n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Return the difference that a two-sided paired t test of `n` pairs at level `alpha` detects with a probability of
    `power`.

    With a true difference δ the test rejects if |Z + √n δ / sd| > t · S, where Z is standard normal, t the critical
    value, and (n − 1) S² independent of Z and χ² with n − 1 degrees of freedom. The probability is averaged over
    quantiles of S, because SciPy's noncentral t is not a number for some arguments. Returns inf for one pair.
    """
    if n < 2:
        return math.inf
    from scipy import optimize, stats

    critical = float(stats.t.isf(alpha / 2, n - 1))
    quantiles = (np.arange(_QUANTILES) + 0.5) / _QUANTILES
    thresholds = critical * np.sqrt(stats.chi2.ppf(quantiles, n - 1) / (n - 1))

    def excess(shift: float) -> float:
        rejected = stats.norm.cdf(shift - thresholds) + stats.norm.cdf(-shift - thresholds)
        return float(rejected.mean()) - power

    return float(optimize.brentq(excess, 0.0, 4 * critical + 8.0)) * sd / math.sqrt(n)


def sign_flip_p(differences: Sequence[float]) -> float:
    """Return the two-sided p value of the permutation test of paired differences (Fisher 1935, §21).

    If the configurations are equal, each difference has either sign with the same probability. p is the share of all
    2^n choices of signs whose sum is at least as far from 0 as that of the data. More than 20 pairs take 2^20 random
    choices and the data themselves.
    """
    values = np.abs(np.asarray(differences, dtype=np.float64))
    # Equal sums can differ by rounding.
    observed = abs(math.fsum(differences)) * (1 - 1e-12)
    if len(values) > _EXACT_PAIRS:
        signs = np.random.default_rng(0).integers(0, 2, (1 << _EXACT_PAIRS, len(values)), dtype=np.int8)
        hits = int((np.abs((2 * signs - 1) @ values) >= observed).sum())
        return (hits + 1) / (len(signs) + 1)
    sums = np.zeros(1)
    for value in values:
        sums = np.concatenate([sums - value, sums + value])
    return float((np.abs(sums) >= observed).mean())
