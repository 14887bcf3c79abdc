"""Bytes out of plain and compressed files, in blocks, so that no file is ever held whole."""

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
CODECS = (".xz", ".gz", ".zst")
_DAMAGE = (lzma.LZMAError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError, EOFError)

Seen = Callable[[int], None]
"""Told how many bytes of the file on disk have been read so far."""


def read_blocks(path: Path, seen: Seen = lambda position: None) -> Iterator[bytes]:
    """The content of `path`, unpacked if its name ends in .xz, .gz or .zst, in blocks of about 1 MB.

    Raises `UserError` naming the file if it cannot be read, or is damaged or cut short.
    """
    codec = path.suffix.lower()
    try:
        with path.open("rb") as raw:
            for block in _unpacked(raw, codec):
                seen(raw.tell())
                yield block
    except _DAMAGE as error:
        raise UserError(f"{path}: damaged {codec} file ({error})") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _unpacked(raw: io.BufferedReader, codec: str) -> Iterator[bytes]:
    if codec == ".zst":
        return _zstd(raw)
    if codec == ".xz":
        return _blocks(lzma.LZMAFile(raw))
    if codec == ".gz":
        return _blocks(gzip.GzipFile(fileobj=raw))
    return _blocks(raw)


def _blocks(stream: io.BufferedIOBase) -> Iterator[bytes]:
    while block := stream.read(BLOCK):
        yield block


def _zstd(raw: io.BufferedReader) -> Iterator[bytes]:
    """All frames of a zstd file. The library's own stream reader takes a file that was cut short for complete."""
    frame = zstandard.ZstdDecompressor().decompressobj()
    started = False
    while block := raw.read(1 << 16):
        while block:
            if frame.eof:
                frame = zstandard.ZstdDecompressor().decompressobj()
            unpacked = frame.decompress(block)
            started, block = True, frame.unused_data if frame.eof else b""
            if unpacked:
                yield unpacked
    if started and not frame.eof:
        raise EOFError("it ends in the middle of a frame")
    if not started:
        raise EOFError("it is empty")
