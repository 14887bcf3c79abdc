"""Grids by name, and what training sees of one: `fake`, which is `decode(encode(w))` with a straight-through gradient.

What training sees is therefore what the artifact holds, to the bit.
"""

from __future__ import annotations

import re
from typing import Any, cast, get_args

import torch
from torch import Tensor

from jepamba.quant.floats import FloatGrid, Fp8Grid
from jepamba.quant.integers import MAX_WIDTH, MIN_WIDTH, IntGrid, Scale
from jepamba.quant.protocol import Grid

_FLOATS: dict[str, Grid] = {
    grid.name: grid for grid in (Fp8Grid(True), Fp8Grid(False), FloatGrid(torch.bfloat16), FloatGrid(torch.float32))
}
_CLIPPED = "|".join(kind for kind in get_args(Scale) if kind != "absmax")
_INT = re.compile(rf"int([{MIN_WIDTH}-{MAX_WIDTH}])(?:-({_CLIPPED}))?(?:-g([1-9][0-9]{{0,5}}))?")


def grid_named(name: str) -> Grid:
    """The grid with this `name`, as written in an artifact's header. Raises `KeyError` for an unknown name."""
    match = _INT.fullmatch(name)
    if match is None:
        return _FLOATS[name]
    return IntGrid(int(match[1]), cast(Scale, match[2] or "absmax"), int(match[3] or 0))


class _StraightThrough(torch.autograd.Function):
    """Value of the grid's nearest point, gradient of the identity (Bengio et al. 2013).

    The identity holds for clipped values too: the clip is at a share of the row's own largest value and moves with the
    weights, so that a weight beyond it is not lost, and the gradient is what brings it back.
    """

    @staticmethod
    def forward(ctx: Any, w: Tensor, grid: Grid, importance_C: Tensor | None) -> Tensor:
        return grid.decode(grid.encode(w, importance_C), tuple(w.shape))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0], None, None


def fake(w: Tensor, grid: Grid, importance_C: Tensor | None = None) -> Tensor:
    """`w` as it will be stored and loaded, in fp32, differentiable as if nothing had been rounded."""
    return cast(Tensor, _StraightThrough.apply(w, grid, importance_C))  # type: ignore[no-untyped-call]
