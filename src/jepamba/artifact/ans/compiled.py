"""The decoder of `rans.py` in C++ (`decoder.cpp`): a fifth of the time, most of what it takes to load a model."""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jepamba.artifact.ans.rans import AnsDecoder, Counts, Symbols
from jepamba.ops.cpp import library
from jepamba.ops.dispatch import kernels_enabled


@cache
def _library() -> ctypes.CDLL | None:
    file = globals().get("__file__")  # a bundle has none
    return None if file is None else library(Path(file).with_name("decoder.cpp"))


def new_decoder(data: bytes) -> AnsDecoder:
    """Return a decoder of `data`: the compiled one where there is a compiler. Raises `UserError` as `AnsDecoder`."""
    return CompiledDecoder(data) if kernels_enabled() and _library() is not None else AnsDecoder(data)


class _Coder(ctypes.Structure):
    """Struct `Coder` of decoder.cpp."""

    _fields_ = (("words", ctypes.c_void_p), ("left", ctypes.c_int64), ("state", ctypes.c_uint64))


class CompiledDecoder(AnsDecoder):
    """An `AnsDecoder` that also decodes all symbols of adaptive histograms in one call."""

    def _start(self, words: NDArray[np.uint32]) -> None:
        self._words = words
        head = words[:-3:-1].tolist()  # a state has two words, if there are as many
        state = head[0] << 32 | head[1] if len(head) > 1 else sum(head)
        self._coder = _Coder(words.ctypes.data, words.size - len(head), state)

    def _decode(self, frequencies: Counts, count: int) -> Symbols:
        symbols = np.empty(count, dtype=np.uint8)
        self._call("decode_run", frequencies.size, np.ascontiguousarray(frequencies), count, symbols)
        return symbols

    def _is_empty(self) -> bool:
        return bool(self._coder.left == 0 and self._coder.state == 0)

    def code_adaptive(
        self, contexts: NDArray[np.uint16], counts: Counts, seen: Counts, min_run: int, max_run: int, increment: int
    ) -> Symbols:
        """Return the symbols (N,) in `contexts` (N,), which are less than K, and update `counts` (K, A), `seen` (K,).

        See `Histograms.code`.
        """
        symbols, grouped = np.empty((2, contexts.size), dtype=np.uint8)
        places = np.empty(2 * len(counts), dtype=np.int64)
        self._call(
            "decode_adaptive", *counts.shape, counts, seen, min_run, max_run, increment, contexts.size,
            np.ascontiguousarray(contexts), grouped, places, symbols,
        )  # fmt: skip
        return symbols

    def _call(self, name: str, *arguments: NDArray[Any] | int) -> None:
        passed = (
            ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_void_p(value.ctypes.data)
            for value in arguments
        )
        getattr(_library(), name)(ctypes.byref(self._coder), *passed)
