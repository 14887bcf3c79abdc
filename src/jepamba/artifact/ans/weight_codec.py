"""The weight codec: every stream of a block in one run of ANS, under models that learn from what has been coded.

One walk over the block serves both directions (see `coder`): it is given the values when writing and returns them when
reading. What the writer chooses stands in the file before the values that it concerns. Which model a stream gets
follows from its kind alone, so that a new grid needs nothing here:

- weights on a grid (`int`, `fp8`): `weights`;
- other floating-point numbers (`bf16`, `fp32`): `floats`;
- bytes (`u8`): one histogram.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from jepamba.artifact.ans.floats import code_floats
from jepamba.artifact.ans.histograms import Histograms
from jepamba.artifact.ans.ordinals import Ordinals, from_ordinals, to_ordinals
from jepamba.artifact.ans.parameter_search import EVERYTHING, Choices
from jepamba.artifact.ans.rans import AnsCoder, AnsDecoder, AnsEncoder
from jepamba.artifact.ans.weights import Tables, code_weights
from jepamba.artifact.streams import StreamSpec, Values


class WeightCodec:
    """The codec `ans/2`. `choices` bounds what the writer tries, for measurements; a reader reads any."""

    name = "ans/2"

    def __init__(self, choices: Choices = EVERYTHING) -> None:
        self._choices = choices

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        """The block in bytes. Raises `ValueError` for integers off their grid.

        The same values give the same bytes on one machine. What is chosen (levels, coefficients) is found in floating
        point, and on another machine it may come out otherwise; any reader reads either.
        """
        coder, tables = AnsEncoder(), Tables(self._choices)
        for stream, array in zip(streams, values, strict=True):
            _code(coder, tables, stream, to_ordinals(stream, array))
        return coder.finish()

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        """The values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        coder, tables = AnsDecoder(data), Tables(self._choices)
        values = [from_ordinals(stream, _code(coder, tables, stream, None)) for stream in streams]
        coder.finish()
        return values


def _code(coder: AnsCoder, tables: Tables, stream: StreamSpec, ordinals: Ordinals | None) -> Ordinals:
    """The ordinals of a stream, (N,)."""
    if not stream.size:
        return np.zeros(0, dtype=np.uint8)
    if stream.kind in ("int", "fp8"):
        return code_weights(coder, tables, stream, ordinals)
    if stream.kind == "u8":
        return Histograms(1, 256).code(coder, np.zeros(stream.size, dtype=np.uint16), ordinals)
    return code_floats(coder, stream, ordinals)
