"""The weight codec: all streams of a block in one sequence of ANS symbols, with adaptive models.

The same code serves both directions (see `rans.py`): it takes the values when encoding and returns them when decoding.
The parameters that the encoder chooses precede the values that they concern. The kind of a stream determines its model:

- quantized weights (`int`, `fp8`): `weights.py`;
- other floating-point numbers (`bf16`, `fp32`): `floats.py`;
- bytes (`u8`): one histogram.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepamba.artifact.ans.compiled import new_decoder
from jepamba.artifact.ans.floats import code_floats
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.ordinals import Ordinals, from_ordinals, to_ordinals
from jepamba.artifact.ans.parameter_search import FULL_SEARCH, SearchSpace
from jepamba.artifact.ans.rans import AnsCoder, AnsEncoder
from jepamba.artifact.ans.weights import HistogramSets, code_weights
from jepamba.artifact.streams import StreamSpec, Values


class WeightCodec:
    """The codec `ans/2`. `search_space` limits the parameters that the encoder tries; a decoder accepts all of them."""

    name = "ans/2"

    def __init__(self, search_space: SearchSpace = FULL_SEARCH) -> None:
        self._search_space = search_space

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        """Return the encoded block. Raises `ValueError` for integers out of range.

        The same values give the same bytes on the same machine. The encoder finds its parameters (levels, coefficients)
        in floating point, so that another machine may choose others; every decoder reads both.
        """
        encoder, histogram_sets = AnsEncoder(), HistogramSets(self._search_space)
        for stream, array in zip(streams, values, strict=True):
            _code(encoder, histogram_sets, stream, to_ordinals(stream, array))
        return encoder.finish()

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        """Return the values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        decoder, histogram_sets = new_decoder(data), HistogramSets(self._search_space)
        values = [from_ordinals(stream, _code(decoder, histogram_sets, stream, None)) for stream in streams]
        decoder.finish()
        return values


def _code(coder: AnsCoder, histogram_sets: HistogramSets, stream: StreamSpec, ordinals: Ordinals | None) -> Ordinals:
    """Encode or decode the ordinals (N,) of a stream and return them."""
    if not stream.size:
        return np.zeros(0, dtype=np.uint8)
    if stream.kind in ("int", "fp8"):
        return code_weights(coder, histogram_sets, stream, ordinals)
    if stream.kind == "u8":
        return Histograms(1, 256).code(coder, np.zeros(stream.size, dtype=np.uint16), ordinals)
    return code_floats(coder, stream, ordinals)
