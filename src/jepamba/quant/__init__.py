"""The grids that weights are trained on and stored on."""

from jepamba.quant.floats import FP8_INTEGERS, FP8_MAX, FloatGrid, Fp8Grid
from jepamba.quant.grids import fake, grid_named
from jepamba.quant.integers import MAX_WIDTH, MIN_WIDTH, IntGrid
from jepamba.quant.protocol import Grid, Streams, rows

__all__ = [
    "FP8_INTEGERS",
    "FP8_MAX",
    "MAX_WIDTH",
    "MIN_WIDTH",
    "FloatGrid",
    "Fp8Grid",
    "Grid",
    "IntGrid",
    "Streams",
    "fake",
    "grid_named",
    "rows",
]
