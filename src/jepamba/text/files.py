"""Reads plain and compressed files in blocks, so that no file is in memory as a whole."""

from __future__ import annotations

import gzip
import io
import lzma
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

from jepamba.errors import UserError

BLOCK = 1 << 20
START = 1 << 16
"""The bytes from which the kind of a file is told."""
CODECS = (".xz", ".gz", ".zst")
MAX_WINDOW = 1 << 31
"""Bytes that a zstd file may refer back: all that `zstd --long=31` writes, and at most so much memory is used."""
_DAMAGE_ERRORS = (lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError)

ReadCallback = Callable[[int], None]
"""Called with the number of bytes read so far from the file on disk."""


def read_blocks(
    path: Path, on_read: ReadCallback = lambda position: None, *, size: int = 0, packed: bool = False
) -> Iterator[bytes]:
    """Yield the content of `path` in blocks of about `size` bytes (default: `BLOCK`).

    It is decompressed if the name ends in .xz, .gz or .zst, unless it is to stay `packed`.

    Raises `UserError` with the file name if the file cannot be read, is damaged or is truncated.
    """
    codec = "" if packed else path.suffix.lower()
    try:
        with path.open("rb") as raw:
            for block in _decompressed(raw, codec, size or BLOCK):
                on_read(raw.tell())
                yield block
    except _DAMAGE_ERRORS as error:
        raise UserError(f"{path}: damaged {codec} file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def read_start(path: Path, *, packed: bool = False) -> bytes:
    """Return the first `START` bytes of the content of `path`, or if `packed` those on disk; see `read_blocks`."""
    start = b""
    for block in read_blocks(path, size=START, packed=packed):
        start += block
        if len(start) >= START:
            break
    return start[:START]


def _decompressed(raw: io.BufferedReader, codec: str, size: int) -> Iterator[bytes]:
    if codec == ".zst":
        return _zstd(raw)
    if codec == ".xz":
        return _blocks(lzma.LZMAFile(raw), size)
    if codec == ".gz":
        return _blocks(gzip.GzipFile(fileobj=raw), size)
    return _blocks(raw, size)


def _blocks(stream: io.BufferedIOBase, size: int) -> Iterator[bytes]:
    while block := stream.read(size):
        yield block


def _zstd(raw: io.BufferedReader) -> Iterator[bytes]:
    """Decompress all frames of a zstd file. zstandard's stream reader does not detect a truncated file."""
    decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW)
    frame, started = decompressor.decompressobj(), False
    while block := raw.read(1 << 16):
        while block:
            if frame.eof:
                frame = decompressor.decompressobj()
            decompressed = frame.decompress(block)
            started, block = True, frame.unused_data if frame.eof else b""
            if decompressed:
                yield decompressed
    if started and not frame.eof:
        raise EOFError("the file ends in the middle of a frame")
    if not started:
        raise EOFError("the file is empty")
