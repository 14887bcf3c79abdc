"""Quantizers, and the weight that is trained and stored with one. Read `module.py` first, then `protocol.py`."""

from jepamba.quant.floats import FloatQuantizer, Fp8Quantizer
from jepamba.quant.grids import fake_quantize, quantizer_named
from jepamba.quant.integers import MAX_BITS, MIN_BITS, IntQuantizer
from jepamba.quant.module import CachedWeights, QuantWeight
from jepamba.quant.protocol import Quantizer, Streams, rows

__all__ = [
    "MAX_BITS",
    "MIN_BITS",
    "CachedWeights",
    "FloatQuantizer",
    "Fp8Quantizer",
    "IntQuantizer",
    "QuantWeight",
    "Quantizer",
    "Streams",
    "fake_quantize",
    "quantizer_named",
    "rows",
]
