"""Curves in the terminal, drawn with Braille characters of 2 × 4 dots."""

from __future__ import annotations

import math
from collections.abc import Sequence

Points = Sequence[tuple[float, float]]

_BLANK = 0x2800
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of a dot by row and column in the character, after the Unicode block Braille Patterns."""
_DOTS_X, _DOTS_Y = 2, 4
_CLIPPED_SHARE = 0.03
"""Share of a long curve's points that may lie above the plot, so that a high start does not flatten the rest."""


def plot_curve(points: Points, width: int, height: int, ascii_only: bool = False) -> list[str]:
    """Plot finite `points` (x, y), in order of x, as `height` lines of at most `width` characters.

    Each line starts with its y value. The last line has the first and the last x. Without points the list is empty.
    """
    if not points:
        return []
    low, high = _range([y for _, y in points])
    labels = [short_number(high - (high - low) * row / max(height - 2, 1)) for row in range(height - 1)]
    margin = max(map(len, labels))
    columns = max(width - margin - 2, 4)
    rows = _rasterize(_column_means(points, columns * _DOTS_X), low, high, columns, height - 1)
    lines = []
    for label, row in zip(labels, rows, strict=True):
        drawn = "".join((" *"[bits > 0]) if ascii_only else chr(_BLANK + bits) for bits in row)
        lines.append(f"{label:>{margin}} {'|' if ascii_only else '┤'}{drawn}")
    first, last = short_number(points[0][0]), short_number(points[-1][0])
    lines.append(" " * (margin + 2) + first + f"{last:>{max(columns - len(first), 0)}}")
    return lines


def short_number(value: float) -> str:
    """Format `value` in few characters: 12.3 k, 1.234, 2e-05."""
    magnitude = abs(value)
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if magnitude >= unit:
            return f"{value / (1e3 if name == ' k' else unit):.4g}{name}"
    return f"{value:,.0f}" if magnitude >= 100 or value == round(value) else f"{value:.4g}"


def _range(values: list[float]) -> tuple[float, float]:
    """Return the lowest and the highest y of the plot."""
    ordered = sorted(values)
    low = ordered[0]
    high = ordered[math.ceil(len(ordered) * (1 - _CLIPPED_SHARE)) - 1] if len(ordered) > 50 else ordered[-1]
    return (low, high) if high > low else (low - max(abs(low), 1e-9) / 10, low + max(abs(low), 1e-9) / 10)


def _column_means(points: Points, count: int) -> list[tuple[int, float]]:
    """Return (column, mean y) for each of `count` columns of dots that has points."""
    first, last = points[0][0], points[-1][0]
    scale = (count - 1) / (last - first) if last > first else 0.0
    sums: dict[int, tuple[float, int]] = {}
    for x, y in points:
        column = round((x - first) * scale)
        total, number = sums.get(column, (0.0, 0))
        sums[column] = total + y, number + 1
    return [(column, total / number) for column, (total, number) in sorted(sums.items())]


def _rasterize(dots: list[tuple[int, float]], low: float, high: float, columns: int, rows: int) -> list[list[int]]:
    """Return the bits of each character, row by row. Lines connect neighbouring dots."""
    bits = [[0] * columns for _ in range(rows)]
    height = rows * _DOTS_Y - 1

    def level(value: float) -> int:
        return round((high - min(max(value, low), high)) / (high - low) * height)

    def put(column: int, row: int) -> None:
        bits[row // _DOTS_Y][column // _DOTS_X] |= _DOTS[row % _DOTS_Y][column % _DOTS_X]

    column, row = dots[0][0], level(dots[0][1])
    put(column, row)
    for to_column, value in dots[1:]:
        to_row = level(value)
        steps = max(to_column - column, abs(to_row - row))
        for step in range(1, steps + 1):
            put(column + round((to_column - column) * step / steps), row + round((to_row - row) * step / steps))
        column, row = to_column, to_row
    return bits
