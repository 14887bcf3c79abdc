"""The weight codec: all streams of a block in one sequence of ANS symbols, with adaptive models.

The same code serves both directions (see `rans.py`): it takes the values when encoding and returns them when decoding.
The parameters that the encoder chooses precede the values that they concern. The kind of a stream determines its model:

- quantized weights (`int`, `fp8`): `weights.py`;
- other floating-point numbers (`bf16`, `fp32`): `floats.py`;
- bytes (`u8`): one histogram.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from jepamba.artifact.ans.compiled import new_decoder
from jepamba.artifact.ans.floats import code_floats
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.ordinals import Ordinals, from_ordinals, to_ordinals
from jepamba.artifact.ans.parameter_search import FULL_SEARCH, SearchSpace, Statistics, statistics
from jepamba.artifact.ans.rans import AnsCoder, AnsEncoder
from jepamba.artifact.ans.weights import HistogramSets, code_weights
from jepamba.artifact.streams import StreamSpec, Values

WEIGHTS = ("int", "fp8")
"""Kinds of streams with quantized weights."""
MAX_THREADS = 8
"""Threads of an encoder. Each takes some 40 bytes for each value of its matrix."""


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
        ordinals = [to_ordinals(stream, array) for stream, array in zip(streams, values, strict=True)]
        # The statistics of a matrix, most of the work, do not depend on those before. NumPy releases the GIL.
        with ThreadPoolExecutor(max_workers=min(os.cpu_count() or 1, MAX_THREADS)) as pool:
            known = list(pool.map(self._statistics, streams, ordinals))
        for arguments in zip(streams, ordinals, known, strict=True):
            _code(encoder, histogram_sets, *arguments)
        return encoder.finish()

    def _statistics(self, stream: StreamSpec, ordinals: Ordinals) -> Statistics | None:
        if stream.kind not in WEIGHTS or not stream.size:
            return None
        return statistics(self._search_space, stream, ordinals)

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        """Return the values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        decoder, histogram_sets = new_decoder(data), HistogramSets(self._search_space)
        values = [from_ordinals(stream, _code(decoder, histogram_sets, stream, None, None)) for stream in streams]
        decoder.finish()
        return values


def _code(
    coder: AnsCoder,
    histogram_sets: HistogramSets,
    stream: StreamSpec,
    ordinals: Ordinals | None,
    known: Statistics | None,
) -> Ordinals:
    """Encode or decode the ordinals (N,) of a stream and return them."""
    if not stream.size:
        return np.zeros(0, dtype=np.uint8)
    if stream.kind in WEIGHTS:
        return code_weights(coder, histogram_sets, stream, ordinals, known)
    if stream.kind == "u8":
        return Histograms(1, 256).code(coder, np.zeros(stream.size, dtype=np.uint16), ordinals)
    return code_floats(coder, stream, ordinals)
