"""What general-purpose compressors make of the same held-out bytes: the figures a model's BPB is read against.

Each runs at its highest level, once on the held-out bytes alone and once with the training text as history. With
history, Zstandard takes the training text as a raw-content dictionary; the others have no such thing, so that they
compress history and held-out text as one, and what the history costs alone is subtracted. Some see only the end of the
history: gzip's window is 32 kB, a bzip2 block 900 kB, brotli's window 16 MB, xz's here 128 MB; Zstandard sees
all of it.
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
"""What lies further back does not change brotli's result, only its time."""


class Baseline(TypedDict):
    """A compressor's result, in bytes and in bits per byte of the held-out text."""

    compressor: str
    bytes: int
    bpb: float
    bytes_with_history: int | None
    bpb_with_history: float | None


def compressors(test: bytes, history: bytes = b"", progress: Report | None = None) -> list[Baseline]:
    """A row for each compressor on `test`; the columns with history are None where `history` is empty.

    Brotli takes longest, some seconds for each megabyte. Raises `UserError` if `test` is empty.
    """
    if not test:
        raise UserError("no held-out text to compress")
    window = (len(test) + len(history)).bit_length()
    methods: dict[str, Callable[[bytes], int]] = {
        "gzip -9": lambda text: len(gzip.compress(text, 9, mtime=0)),
        "bzip2 -9": lambda text: len(bz2.compress(text, 9)),
        "xz -9e": lambda text: _xz(text, window),
        "zstd --ultra -22": lambda text: _zstd(text, b"", window),
        "brotli -q 11": lambda text: len(brotli.compress(text, quality=11, lgwin=24)),
    }
    rows: list[Baseline] = []
    for name, size in methods.items():
        if progress is not None:
            progress(len(rows), len(methods), name)
        alone = size(test)
        after: int | None = None
        if history:
            if name.startswith("zstd"):
                after = _zstd(test, history, window)
            else:
                seen = history[-_BROTLI_WINDOW:] if name.startswith("brotli") else history
                after = size(seen + test) - size(seen)
        rows.append(
            {
                "compressor": name,
                "bytes": alone,
                "bpb": 8 * alone / len(test),
                "bytes_with_history": after,
                "bpb_with_history": None if after is None else 8 * after / len(test),
            }
        )
    if progress is not None:
        progress(len(methods), len(methods))
    return rows


def _xz(text: bytes, window: int) -> int:
    """Bytes of `text` in an .xz file at level 9e, whose dictionary is widened beyond 64 MiB if the text is longer."""
    dictionary = min(max(1 << 26, 1 << window), 1 << 27)
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]
    return len(lzma.compress(text, format=lzma.FORMAT_XZ, filters=filters))


def _zstd(text: bytes, history: bytes, window: int) -> int:
    """Bytes of `text` at level 22, `history` being a dictionary that writer and reader already have."""
    parameters = zstandard.ZstdCompressionParameters.from_level(
        22, source_size=len(text), dict_size=len(history), window_log=min(max(window, 10), 31), enable_ldm=bool(history)
    )
    known = zstandard.ZstdCompressionDict(history, dict_type=zstandard.DICT_TYPE_RAWCONTENT) if history else None
    return len(zstandard.ZstdCompressor(dict_data=known, compression_params=parameters).compress(text))
