"""Paired differences and their intervals, against SciPy's one-sample test and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from jepamba.study.statistics import (
    half_width,
    paired_difference,
    pairs_for,
    sign_flip_p,
    smallest_effect,
)

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Hours of sleep gained by ten patients with two drugs: Student (1908), "The probable error of a mean", Biometrika 6,
here the data set `sleep` of R."""
DARWIN = [49, -67, 8, 16, 6, 23, 28, 41, 14, 29, 56, 24, 75, 60, -48]
"""Cross- minus self-fertilized maize, eighths of an inch: Fisher (1935), "The Design of Experiments", chapter III."""


def test_the_interval_is_scipys_one_sample_interval() -> None:
    rng = np.random.default_rng(0)
    base = {seed: float(rng.normal(2.0, 0.1)) for seed in range(5)}
    other = {seed: base[seed] - 0.05 + float(rng.normal(0, 0.01)) for seed in range(5)}
    found = paired_difference(other, base)
    oracle = stats.ttest_1samp([other[s] - base[s] for s in range(5)], 0).confidence_interval(0.95)
    assert found is not None
    assert (found.low, found.high) == pytest.approx((oracle.low, oracle.high), rel=1e-9)
    assert found.verdict() == "lower"


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(2000):
        pairs = dict(enumerate(rng.normal(0.3, 1.0, size=3).tolist()))
        found = paired_difference(pairs, dict.fromkeys(pairs, 0.0))
        assert found is not None
        hits += found.low <= 0.3 <= found.high
    assert 0.93 < hits / 2000 < 0.97


def test_student_s_sleep_data_as_published() -> None:
    """R's `t.test(sleep$extra[11:20], sleep$extra[1:10], paired = TRUE)`: t = 4.0621, df = 9, p = 0.002833, interval
    0.7001142 to 2.4598858, mean 1.58. Student gives 1.58 and, with divisor n, a standard deviation of 1.17."""
    first, second = (dict(enumerate(values)) for values in SLEEP)
    found = paired_difference(second, first)
    assert found is not None
    assert (found.mean, found.low, found.high) == pytest.approx((1.58, 0.7001142, 2.4598858), abs=5e-8)
    assert found.mean / (found.sd / math.sqrt(10)) == pytest.approx(4.0621, abs=5e-5)
    assert found.sd * math.sqrt(9 / 10) == pytest.approx(1.17, abs=0.005)
    # No difference is negative and one is 0: of 2^10 choices of signs 4 are as extreme as the data.
    assert found.p_flip == 4 / 1024
    assert found.p_t == pytest.approx(0.002833, abs=5e-7)


def test_fisher_s_permutation_test_as_published() -> None:
    """Fisher (1935), §21: of 32,768 choices of signs 1,726 are as extreme, 5.267 %, where Student's t gives 4.970 %."""
    assert sign_flip_p(DARWIN) == 1726 / 32768
    found = paired_difference(dict(enumerate(map(float, DARWIN))), dict.fromkeys(range(15), 0.0))
    assert found is not None
    t = found.mean / (found.sd / math.sqrt(15))
    assert (t, found.p_t) == (pytest.approx(2.148, abs=5e-4), pytest.approx(0.0497, abs=5e-5))


def test_many_pairs_are_permuted_at_random() -> None:
    values = np.random.default_rng(5).normal(0.4, 1.0, size=24)
    exact = stats.permutation_test(
        (values,), np.mean, permutation_type="samples", n_resamples=100_000, rng=np.random.default_rng(1)
    )
    assert sign_flip_p(values.tolist()) == pytest.approx(exact.pvalue, abs=0.004)
    assert sign_flip_p([1.0] * 30) == pytest.approx(1 / 2**20, rel=0.01)


def test_the_two_tests_agree_on_normal_differences() -> None:
    rng = np.random.default_rng(2)
    for shift in (0.0, 0.3, 0.6):
        values = rng.normal(shift, 1.0, size=14)
        found = paired_difference(dict(enumerate(values.tolist())), dict.fromkeys(range(14), 0.0))
        assert found is not None
        assert found.p_t == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=1e-9)
        assert found.p_flip == pytest.approx(found.p_t, abs=0.02)


def test_the_smallest_effect_of_34_pairs_as_published() -> None:
    """Faul et al. (2007), G*Power 3: a paired t test with d = 0.5, α = 0.05 and 34 pairs has a power of 0.8078."""
    assert smallest_effect(1.0, 34, power=0.8077775) == pytest.approx(0.5, abs=1e-5)
    assert smallest_effect(0.01, 34, power=0.8077775) == pytest.approx(0.005, abs=1e-7)
    assert smallest_effect(1.0, 1) == math.inf


@pytest.mark.parametrize("alpha", [0.05, 0.05 / 3])
@pytest.mark.parametrize("n", [2, 5, 10, 30])
def test_the_smallest_effect_is_found_as_often_as_it_says(n: int, alpha: float) -> None:
    effect = smallest_effect(2.0, n, alpha=alpha)
    differences = np.random.default_rng(n).normal(effect, 2.0, size=(20_000, n))
    assert (stats.ttest_1samp(differences, 0, axis=1).pvalue < alpha).mean() == pytest.approx(0.8, abs=0.01)


def test_the_pairs_for_a_half_width_are_the_fewest() -> None:
    for sd, half in ((0.0085, 0.002), (0.003, 0.002), (1.0, 0.05), (0.0001, 0.002)):
        n = pairs_for(sd, half)
        assert half_width(sd, n) <= half
        assert n == 3 or half_width(sd, n - 1) > half
    assert pairs_for(0.0, 0.002) == 3
    assert half_width(1.0, 1) == math.inf
    # R: qt(0.975, 9) = 2.262157
    assert half_width(1.0, 10) == pytest.approx(2.262157 / math.sqrt(10), rel=1e-6)


def test_only_shared_seeds_are_paired() -> None:
    found = paired_difference({1: 1.0, 2: 2.0, 9: 100.0}, {1: 0.0, 2: 1.0, 3: 50.0})
    assert found is not None
    assert (found.mean, found.n) == (1.0, 2)
    assert paired_difference({1: 1.0}, {2: 1.0}) is None


def test_fewer_than_three_pairs_are_never_called_a_difference() -> None:
    for n in (1, 2):
        found = paired_difference(dict.fromkeys(range(n), 5.0), dict.fromkeys(range(n), 0.0))
        assert found is not None
        assert found.verdict() == "too few pairs"
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
        assert found.verdict() == verdict
    clear = paired_difference({1: 1.0, 2: 1.1, 3: 0.9}, base)
    assert clear is not None
    assert clear.p_t == pytest.approx(0.0033, abs=1e-4)
    assert (clear.verdict(0.004), clear.verdict(0.003)) == ("higher", "no difference shown")


@pytest.mark.parametrize("alpha", [1e-9, 0.01, 0.5])
def test_every_level_of_a_plan_has_a_smallest_effect(alpha: float) -> None:
    """Between those of a level ten times as large and a tenth as large."""
    effect = smallest_effect(1.0, 5, alpha=alpha)
    assert 0 < smallest_effect(1.0, 5, alpha=min(0.6, 10 * alpha)) < effect < math.inf
