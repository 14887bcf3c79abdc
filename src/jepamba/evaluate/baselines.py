"""General-purpose compressors on the held-out bytes, as baselines for a model's BPB.

Each compressor runs at its highest level, once on the held-out bytes alone and once with the training text as history.
Zstandard takes the history as a raw-content dictionary. The other formats have no such dictionary: they compress
history and held-out text together, and the size of the compressed history is subtracted. Most windows cover
only the end of a long history: 32 kB for gzip, 900 kB for bzip2 (a block), 16 MB for brotli, 128 MB here for xz.
Zstandard's covers all of it.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from typing import TypedDict

import brotli
import zstandard

from jepamba.errors import UserError
from jepamba.progress import Report

_BROTLI_WINDOW = 1 << 24
"""Bytes. Brotli ignores earlier history, so passing it would only cost time."""


class Baseline(TypedDict):
    """Compressed size of the held-out text, in bytes and in bits per byte of that text."""

    compressor: str
    bytes: int
    bpb: float
    bytes_with_history: int | None
    bpb_with_history: float | None


def compressors(test: bytes, history: bytes = b"", progress: Report | None = None) -> list[Baseline]:
    """Compress `test` with each compressor. The fields with history are None if `history` is empty.

    Brotli is the slowest, at some seconds per megabyte. Raises `UserError` if `test` is empty.
    """
    if not test:
        raise UserError("no held-out text to compress")
    window_log = (len(test) + len(history)).bit_length()
    methods: dict[str, Callable[[bytes], int]] = {
        "gzip -9": lambda text: len(gzip.compress(text, 9, mtime=0)),
        "bzip2 -9": lambda text: len(bz2.compress(text, 9)),
        "xz -9e": lambda text: _xz(text, window_log),
        "zstd --ultra -22": lambda text: _zstd(text, b"", window_log),
        "brotli -q 11": lambda text: len(brotli.compress(text, quality=11, lgwin=24)),
    }
    rows: list[Baseline] = []
    for name, size in methods.items():
        if progress is not None:
            progress(len(rows), len(methods), name)
        alone = size(test)
        with_history: int | None = None
        if history:
            if name.startswith("zstd"):
                with_history = _zstd(test, history, window_log)
            else:
                visible = history[-_BROTLI_WINDOW:] if name.startswith("brotli") else history
                with_history = size(visible + test) - size(visible)
        rows.append(
            {
                "compressor": name,
                "bytes": alone,
                "bpb": 8 * alone / len(test),
                "bytes_with_history": with_history,
                "bpb_with_history": None if with_history is None else 8 * with_history / len(test),
            }
        )
    if progress is not None:
        progress(len(methods), len(methods))
    return rows


def _xz(text: bytes, window_log: int) -> int:
    """Return the size of `text` as an .xz file at level 9e, with a dictionary of 64 to 128 MiB as the text requires."""
    dictionary = min(max(1 << 26, 1 << window_log), 1 << 27)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def _zstd(text: bytes, history: bytes, window_log: int) -> int:
    """Return the size of `text` at level 22. Encoder and decoder both have `history` as the dictionary."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22,
        source_size=len(text),
        dict_size=len(history),
        window_log=min(max(window_log, 10), 31),
        enable_ldm=bool(history),
    )
    dictionary = zstandard.ZstdCompressionDict(history, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if history else None
    return len(zstandard.ZstdCompressor(dict_data=dictionary, compression_params=parameters).compress(text))
