"""The weight codec: asymmetric numeral systems under models of quantized weights. Read `codec.py` first."""

from jepamba.artifact.ans.weight_codec import WeightCodec

__all__ = ["WeightCodec"]
