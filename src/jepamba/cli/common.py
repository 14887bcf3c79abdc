"""What several commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def columns(rows: Sequence[Sequence[str]]) -> str:
    """`rows` as text in columns two spaces apart; a column of numbers stands right, its heading (first row) too."""
    sides = []
    for index, column in enumerate(zip(*rows, strict=True)):
        figures = all(cell[:1].isdigit() or cell in ("", "–") for cell in column[1:]) and any(column[1:])
        sides.append((max(map(len, column)), str.rjust if index and figures else str.ljust))
    lines = ("  ".join(side(cell, width) for cell, (width, side) in zip(row, sides, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def free_folder(wish: Path) -> Path:
    """`wish`, or where there is something at it, `wish-2`, `wish-3` and so on."""
    found, number = wish, 1
    while found.exists():
        number += 1
        found = wish.with_name(f"{wish.name}-{number}")
    return found


def device() -> str:
    """`cuda` where there is a GPU, else `cpu`."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
