"""The weight codec: asymmetric numeral systems (ANS) with adaptive models of quantized weights.

Read `weight_codec.py` first. docs/artifact-format.md specifies the bytes.
"""

from jepamba.artifact.ans.weight_codec import WeightCodec

__all__ = ["WeightCodec"]
