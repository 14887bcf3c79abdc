"""Curves drawn with characters: each Braille character holds two by four dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The bit of a dot by its row and column in the character: Unicode, block Braille Patterns."""
_ACROSS, _DOWN = 2, 4
_STEEP = 0.03
"""Of a long curve, this share of the points may lie above the picture: a start far above the rest would flatten it."""


def curve(points: Points, width: int, height: int, ascii_only: bool = False) -> list[str]:
    """`points` (x, y), finite and in order of x, as `height` lines of at most `width` characters; the last has the x
    axis's ends, each has its own y at the left. Empty without points."""
    if not points:
        return []
    low, high = _range([y for _, y in points])
    labels = [figure(high - (high - low) * row / max(height - 2, 1)) for row in range(height - 1)]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 4)
    rows = _picture(_binned(points, columns * _ACROSS), low, high, columns, height - 1)
    lines = []
    for label, row in zip(labels, rows, strict=True):
        drawn = "".join((" *"[bits > 0]) if ascii_only else chr(_BLANK + bits) for bits in row)
        lines.append(f"{label:>{margin}} {'|' if ascii_only else '┤'}{drawn}")
    first, last = figure(points[0][0]), figure(points[-1][0])
    lines.append(" " * (margin + 2) + first + f"{last:>{max(columns - len(first), 0)}}")
    return lines


def figure(value: float) -> str:
    """`value` in few characters: 12.3 k, 1.234, 2e-05."""
    size = abs(value)
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if size >= unit:
            return f"{value / (1e3 if name == ' k' else unit):.4g}{name}"
    return f"{value:,.0f}" if size >= 100 or value == round(value) else f"{value:.4g}"


def _range(values: list[float]) -> tuple[float, float]:
    """The lowest and the highest value of the picture."""
    ordered = sorted(values)
    low = ordered[0]
    high = ordered[math.ceil(len(ordered) * (1 - _STEEP)) - 1] if len(ordered) > 50 else ordered[-1]
    return (low, high) if high > low else (low - max(abs(low), 1e-9) / 10, low + max(abs(low), 1e-9) / 10)


def _binned(points: Points, count: int) -> list[tuple[int, float]]:
    """For each of `count` columns of dots in which there is a point, the mean of its points."""
    first, last = points[0][0], points[-1][0]
    scale = (count - 1) / (last - first) if last > first else 0.0
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = round((x - first) * scale)
        total, number = sums.get(column, (0.0, 0))
        sums[column] = total + y, number + 1
    return [(column, total / number) for column, (total, number) in sorted(sums.items())]


def _picture(dots: list[tuple[int, float]], low: float, high: float, columns: int, rows: int) -> list[list[int]]:
    """The bits of each character, row by row; neighbouring dots are joined."""
    bits = [[0] * columns for _ in range(rows)]
    height = rows * _DOWN - 1

    def level(value: float) -> int:
        return round((high - min(max(value, low), high)) / (high - low) * height)

    def put(column: int, row: int) -> None:
        bits[row // _DOWN][column // _ACROSS] |= _DOTS[row % _DOWN][column % _ACROSS]

    column, row = dots[0][0], level(dots[0][1])
    put(column, row)
    for to_column, value in dots[1:]:
        to_row = level(value)
        steps = max(to_column - column, abs(to_row - row))
        for step in range(1, steps + 1):
            put(column + round((to_column - column) * step / steps), row + round((to_row - row) * step / steps))
        column, row = to_column, to_row
    return bits
