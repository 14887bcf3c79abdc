"""Tests of the constant-memory permutation: it is a permutation for every size and seed, and looks random."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from examples import examples
from jepamba.data.order import Permutation


def whole(order: Permutation) -> list[int]:
    numbers: list[int] = order(np.arange(order.count)).tolist()
    return numbers


@settings(max_examples=examples(200), deadline=None)
@given(st.integers(1, 3000), st.integers(0, 2**70), st.integers(0, 5))
def test_every_number_once(count: int, seed: int, epoch: int) -> None:
    order = Permutation(count, (seed, epoch))
    numbers = whole(order)
    assert sorted(numbers) == list(range(count))
    # Any place alone gives what it gives among others.
    places = np.array([0, count - 1, count // 2, count // 3])
    assert order(places).tolist() == [numbers[place] for place in places]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_small_orders_are_all_as_likely(count: int) -> None:
    """Chi-squared test over all permutations of a few numbers, at a level of 0.1 %."""
    draws = 200 * math.factorial(count)
    seen = Counter(tuple(whole(Permutation(count, (seed, 0)))) for seed in range(draws))
    expected = draws / math.factorial(count)
    statistic = sum((seen[order] - expected) ** 2 / expected for order in seen)
    statistic += (math.factorial(count) - len(seen)) * expected
    assert chi2.sf(statistic, math.factorial(count) - 1) > 1e-3


def test_places_and_numbers_are_not_related() -> None:
    """The position of a number and its successor are uniformly distributed (chi-squared tests)."""
    count, cells = 1 << 16, 16
    numbers = Permutation(count, (7, 1))(np.arange(count))
    pairs = {
        "place and number": (np.arange(count), numbers),
        "number and the next": (numbers[:-1], numbers[1:]),
        "two seeds": (numbers, Permutation(count, (8, 1))(np.arange(count))),
        "two epochs": (numbers, Permutation(count, (7, 2))(np.arange(count))),
    }
    for what, (left, right) in pairs.items():
        table = np.histogram2d(left, right, bins=cells, range=[[0, count], [0, count]])[0]
        expected = left.size / cells**2
        assert chi2.sf(((table - expected) ** 2 / expected).sum(), (cells - 1) ** 2) > 1e-3, what


def test_large_orders_take_no_memory() -> None:
    """A million samples of 10^15 numbers are distinct, in range, and equally often in both halves."""
    order = Permutation(10**15, (1, 0))
    numbers = order(np.arange(10**15 - 10**6, 10**15))
    assert np.unique(numbers).size == 10**6
    assert 0 <= numbers.min() <= numbers.max() < 10**15
    assert abs(int((numbers < 10**15 // 2).sum()) - 500_000) < 4 * 500


def test_wrong_calls_are_refused() -> None:
    for count in (0, -1, 2**62):
        with pytest.raises(ValueError, match="a permutation of"):
            Permutation(count, (0,))
    for place in (-1, 10):
        with pytest.raises(ValueError, match="outside a permutation of 10"):
            Permutation(10, (0,))(np.array([0, place]))
    assert Permutation(10, (0,))(np.array([], dtype=np.int64)).size == 0
