"""Paired differences and their intervals, against SciPy's one-sample test and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jepamba.study.statistics import interpolate, paired_difference


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
