"""Bit allocation: bits for each tensor under a budget in bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """Size and loss increase of a tensor at one number of bits."""

    bits: int
    """Bits of the integers."""
    bytes: float
    """Bytes of the tensor in the artifact."""
    loss_increase: float
    """Expected rise of the loss in nats per token."""


def allocate_bits(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, int]:
    """Choose the bits of each tensor that minimize the total loss increase within `budget` bytes, greedily.

    Each tensor starts at its smallest option. Steps along the lower convex hull of its options follow in the order of
    loss saved per byte (Shoham & Gersho 1988). A step that exceeds the budget ends the steps of its tensor. Ties are
    resolved by name, so the result is deterministic.

    Arguments: `options`, the possible bits of each tensor by its name; `budget`, in bytes.
    Returns: bits by name; those of the smallest options if even these exceed the budget.
    """
    chosen = {
        name: min(choices, key=lambda option: (option.bytes, option.loss_increase)) for name, choices in options.items()
    }
    spent = sum(option.bytes for option in chosen.values())
    steps = sorted(
        (-_gain(before, after), name, number, before, after)
        for name, choices in options.items()
        for number, (before, after) in enumerate(_hull(chosen[name], choices))
    )
    stopped: set[str] = set()
    for _, name, _, before, after in steps:
        if name in stopped or spent + after.bytes - before.bytes > budget:
            stopped.add(name)
            continue
        chosen[name] = after
        spent += after.bytes - before.bytes
    return {name: option.bits for name, option in chosen.items()}


def _hull(start: Option, options: Sequence[Option]) -> list[tuple[Option, Option]]:
    """Steps from `start` along the lower convex hull of (bytes, loss increase), by falling gain."""
    steps: list[tuple[Option, Option]] = []
    current = start
    while True:
        larger = [
            option
            for option in options
            if option.bytes > current.bytes and option.loss_increase < current.loss_increase
        ]
        if not larger:
            return steps
        best = max(larger, key=lambda option: (_gain(current, option), option.bytes))
        steps.append((current, best))
        current = best


def _gain(before: Option, after: Option) -> float:
    """Damage saved per additional byte."""
    return (before.loss_increase - after.loss_increase) / (after.bytes - before.bytes)
