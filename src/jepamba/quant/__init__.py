"""The grids that weights are trained on and stored on."""

from jepamba.quant.floats import FloatGrid, Fp8Grid
from jepamba.quant.grids import fake, grid_named
from jepamba.quant.integers import MAX_WIDTH, MIN_WIDTH, IntGrid
from jepamba.quant.protocol import Grid, Streams, rows

__all__ = [
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
