"""Choosing bits under a budget: against every combination, and the entropy against SciPy's."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.quant.budget import Option, allocate_bits
from jepamba.quant.entropy import entropy, entropy_bits

Options = dict[str, list[Option]]


def convex(names: str, seed: int) -> Options:
    """Tensors of different sizes whose loss increase falls by four with each bit, as that of rounding does."""
    random = np.random.default_rng(seed)
    found: Options = {}
    for name in names:
        size, harm = random.integers(10, 1000), float(random.random())
        found[name] = [Option(width, size * width, harm * 4.0**-width) for width in range(2, 9)]
    return found


def total(options: Options, bits: dict[str, int]) -> tuple[float, float]:
    chosen = [next(o for o in options[name] if o.bits == width) for name, width in bits.items()]
    return sum(o.bytes for o in chosen), sum(o.loss_increase for o in chosen)


@given(st.integers(0, 10**6), st.floats(0.05, 1.2))
@settings(max_examples=examples(60), deadline=None)
def test_the_choice_fits_and_is_near_the_best_of_all(seed: int, share: float) -> None:
    options = convex("abcd", seed)
    least, most = (sum(given[end].bytes for given in options.values()) for end in (0, -1))
    budget = least + share * (most - least)
    bits = allocate_bits(options, budget)
    size, increase = total(options, bits)
    assert size <= budget
    every = (
        total(options, dict(zip(options, (o.bits for o in combination), strict=True)))
        for combination in itertools.product(*options.values())
    )
    best = min(increase for size, increase in every if size <= budget)
    # The greedy choice is the best one for the bytes that it takes; what is left over is less than one step.
    step = max(after.loss_increase / 1.0 for given in options.values() for after in given if after.bits == 2)
    assert best <= increase <= best + step
    cheaper = (
        d
        for s, d in (
            (total(options, dict(zip(options, w, strict=True)))) for w in itertools.product(range(2, 9), repeat=4)
        )
        if s <= size
    )
    assert increase <= min(cheaper) + step


def test_bits_go_where_they_matter() -> None:
    steps = range(2, 9)
    options = {
        "vital": [Option(width, 100.0 * width, 1000.0 * 4.0**-width) for width in steps],
        "idle": [Option(width, 100.0 * width, 0.001 * 4.0**-width) for width in steps],
    }
    bits = allocate_bits(options, 1000.0)
    assert bits == {"vital": 8, "idle": 2}
    assert allocate_bits(options, 1e9) == {"vital": 8, "idle": 8}
    assert allocate_bits(options, 0.0) == {"vital": 2, "idle": 2}


def test_a_step_that_is_worth_little_is_leapt_over() -> None:
    """3 bits save hardly anything, 4 bits much: the step is from 2 to 4, when it fits."""
    options = {
        "a": [Option(2, 20, 1.0), Option(3, 30, 0.99), Option(4, 40, 0.1)],
        "b": [Option(2, 20, 0.5), Option(3, 30, 0.3)],
    }
    assert allocate_bits(options, 60) == {"a": 4, "b": 2}
    assert allocate_bits(options, 59) == {"a": 2, "b": 3}


def test_ties_are_settled_by_name_and_order_of_listing_does_not_matter() -> None:
    same = [Option(2, 20, 1.0), Option(3, 30, 0.2)]
    assert allocate_bits({"b": same, "a": same}, 50) == {"a": 3, "b": 2}
    assert allocate_bits({"a": same, "b": same}, 50) == {"a": 3, "b": 2}


def test_a_width_that_costs_more_and_does_more_increase_is_never_taken() -> None:
    options = {"a": [Option(2, 20, 0.5), Option(3, 30, 0.7), Option(4, 40, 0.5)]}
    assert allocate_bits(options, 100) == {"a": 2}


def test_entropy_by_scipy() -> None:
    counts = np.array([5, 0, 1, 7, 100])
    assert entropy(counts) == pytest.approx(scipy.stats.entropy(counts, base=2))
    assert entropy(np.array([9])) == 0.0
    q = torch.randint(-7, 8, (40, 50)).to(torch.int8)
    scale = torch.randn(40).to(torch.bfloat16)
    found = entropy_bits({"q": q, "scale": scale})
    _, counts = np.unique(q.numpy(), return_counts=True)
    raw = scale.view(torch.uint8).reshape(-1, 2).numpy()
    planes = [np.unique(plane, return_counts=True)[1] for plane in raw.T]
    expected = 2000 * scipy.stats.entropy(counts, base=2) + 40 * sum(scipy.stats.entropy(c, base=2) for c in planes)
    assert found == pytest.approx(expected)
    assert found < 2000 * 4 + 40 * 16
    assert entropy_bits({"value": torch.zeros(7)}) == 0.0
    assert entropy_bits({"value": torch.tensor(3.0)}) == 0.0
