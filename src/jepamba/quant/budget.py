"""Bits for each tensor under a budget in bytes: spent where a byte takes the most damage away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class Option(NamedTuple):
    """What one number of bits costs a tensor."""

    bits: int
    """Bits of its integers."""
    bytes: float
    """Of the tensor in the artifact."""
    damage: float
    """Expected rise of the loss, nats per token."""


def allocate_bits(options: Mapping[str, Sequence[Option]], budget: float) -> dict[str, int]:
    """The bits of each tensor: least damage in all for at most `budget` bytes, as near as a greedy choice comes.

    Every tensor starts at its smallest option. Then the step is taken, again and again, that saves the most damage a
    byte (each tensor's steps lie on the lower convex hull of its options, where that order is the best one: Shoham &
    Gersho 1988), and what no longer fits is passed over. Equal options give equal choices; ties go by name.
    If not even the smallest options fit, they are what is chosen.
    """
    chosen = {name: min(given, key=lambda option: (option.bytes, option.damage)) for name, given in options.items()}
    spent = sum(option.bytes for option in chosen.values())
    steps = sorted(
        (-_gain(before, after), name, number, before, after)
        for name, given in options.items()
        for number, (before, after) in enumerate(_hull(chosen[name], given))
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
    """The steps from `start` along the lower convex hull of (bytes, damage), each with a lesser gain than the last."""
    steps: list[tuple[Option, Option]] = []
    here = start
    while True:
        further = [option for option in options if option.bytes > here.bytes and option.damage < here.damage]
        if not further:
            return steps
        best = max(further, key=lambda option: (_gain(here, option), option.bytes))
        steps.append((here, best))
        here = best


def _gain(before: Option, after: Option) -> float:
    """Damage saved for each further byte."""
    return (before.damage - after.damage) / (after.bytes - before.bytes)
