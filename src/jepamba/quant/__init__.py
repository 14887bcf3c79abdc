"""Quantizers, and weights with a quantizer. Read `module.py` first, then `protocol.py`."""

from jepamba.quant.floats import FloatQuantizer, Fp8Quantizer
from jepamba.quant.integers import MAX_BITS, MIN_BITS, IntQuantizer
from jepamba.quant.module import CachedWeights, QuantWeight
from jepamba.quant.protocol import Quantizer, Streams, rows
from jepamba.quant.quantizers import fake_quantize, fake_quantize_into, quantizer_named

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
    "fake_quantize_into",
    "quantizer_named",
    "rows",
]
