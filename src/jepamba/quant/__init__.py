"""The grids that weights are trained on and stored on."""

from jepamba.quant.grids import FloatGrid, Fp8Grid, Grid, IntGrid, Streams, fake, grid_named

__all__ = ["FloatGrid", "Fp8Grid", "Grid", "IntGrid", "Streams", "fake", "grid_named"]
