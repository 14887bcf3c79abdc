"""Student's t and the paired differences, against SciPy and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jepamba.study.statistics import incomplete_beta, interpolate, paired_difference, t_cdf, t_quantile


@pytest.mark.parametrize("df", [1, 2, 3, 4, 9, 29, 200, 5000])
@pytest.mark.parametrize("p", [0.01, 0.025, 0.3, 0.5, 0.9, 0.975, 0.995, 0.9999])
def test_quantiles_are_scipys(df: int, p: float) -> None:
    assert t_quantile(p, df) == pytest.approx(float(stats.t.ppf(p, df)), rel=1e-9, abs=1e-12)


@given(st.floats(-50, 50), st.floats(0.5, 300))
def test_the_distribution_is_scipys(t: float, df: float) -> None:
    # Very near the middle it is SciPy that is off, by some 1e-9 (below).
    near = 1e-8 if abs(t) < 1e-3 else 1e-12
    assert t_cdf(t, df) == pytest.approx(float(stats.t.cdf(t, df)), rel=1e-9, abs=near)


@given(st.floats(-1e-3, 1e-3))
def test_near_the_middle_the_distribution_is_cauchys(t: float) -> None:
    """With one degree of freedom it has a closed form; less the half, so that every digit counts."""
    assert t_cdf(t, 1.0) - 0.5 == pytest.approx(math.atan(t) / math.pi, rel=1e-9, abs=1e-16)


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(0, 1))
def test_the_incomplete_beta_is_scipys(a: float, b: float, x: float) -> None:
    assert incomplete_beta(a, b, x) == pytest.approx(float(stats.beta.cdf(x, a, b)), rel=1e-8, abs=1e-11)


def test_a_quantile_outside_its_range_is_refused() -> None:
    for p, df in ((0.0, 3), (1.0, 3), (0.5, 0)):
        with pytest.raises(ValueError, match="t_quantile"):
            t_quantile(p, df)


def test_the_interval_is_scipys_one_sample_interval() -> None:
    rng = np.random.default_rng(0)
    base = {seed: float(rng.normal(2.0, 0.1)) for seed in range(5)}
    other = {seed: base[seed] - 0.05 + float(rng.normal(0, 0.01)) for seed in range(5)}
    found = paired_difference(other, base)
    oracle = stats.ttest_1samp([other[s] - base[s] for s in range(5)], 0).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.verdict == "lower"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        pairs = dict(enumerate(rng.normal(0.3, 1.0, size=3).tolist()))
        found = paired_difference(pairs, dict.fromkeys(pairs, 0.0))
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.93 < hits / 2000 < 0.97


def test_only_shared_seeds_are_paired() -> None:
    found = paired_difference({1: 1.0, 2: 2.0, 9: 100.0}, {1: 0.0, 2: 1.0, 3: 50.0})
    assert found is not None
    assert (found.mean, found.n) == (1.0, 2)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_fewer_than_three_pairs_are_never_called_a_difference() -> None:
    for n in (1, 2):
        found = paired_difference(dict.fromkeys(range(n), 5.0), dict.fromkeys(range(n), 0.0))
        assert found is not None
        assert found.verdict == "too few pairs"
    one = paired_difference({1: 5.0}, {1: 0.0})
    assert one is not None
    assert (one.low, one.high) == (-math.inf, math.inf)


def test_verdicts() -> None:
    base = {1: 0.0, 2: 0.0, 3: 0.0}
    for values, verdict in (
        ({1: 1.0, 2: 1.1, 3: 0.9}, "higher"),
        ({1: -1.0, 2: -1.1, 3: -0.9}, "lower"),
        ({1: 1.0, 2: -1.1, 3: 0.1}, "no difference shown"),
        (base, "no difference shown"),
    ):
        found = paired_difference(values, base)
        assert found is not None
        assert found.verdict == verdict


def test_interpolation_stays_within_its_curve() -> None:
    curve = [(1.0, 4.0), (3.0, 2.0), (3.0, 1.0), (5.0, 0.0)]
    assert interpolate(curve, 2.0) == 3.0
    assert interpolate(curve, 4.0) == 0.5
    assert interpolate(curve, 1.0) == 4.0
    assert interpolate(curve, 5.0) == 0.0
    assert interpolate(curve, 0.9) is None
    assert interpolate(curve, 5.1) is None
    assert interpolate([(2.0, 7.0)], 2.0) == 7.0
    assert interpolate([], 2.0) is None
