"""Reads and writes token shards: a header of 256 little-endian int32, then 16-bit tokens.

The header has the magic number 20240520, version 1, the token count, and zeros.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from jepamba.errors import UserError
from jepamba.io import atomic_write, open_untrusted

MAGIC = 20240520
VERSION = 1
HEADER_BYTES = 1024
SHARD_TOKENS = 100_000_000
"""Default maximum of tokens in a shard. Longer streams are split into several shards."""
CHECKED_AT_OPENING = 1 << 16
"""Tokens checked when a shard is opened, so that a wrong tokenizer is detected early."""
_CHECK_CHUNK_TOKENS = 1 << 24
_HAS_FADVISE = sys.platform == "linux"
"""Whether the system supports `posix_fadvise`."""


def _header(count: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def write_shard(path: str | Path, tokens: NDArray[np.integer]) -> None:
    """Write `tokens` (N,) as one shard, atomically.

    Raises `ValueError` for a token outside 16 bits, no tokens, or too many for a header.
    """
    if not 0 < tokens.size < 2**31:
        raise ValueError(f"cannot write a shard of {tokens.size} tokens: the format holds 1 to 2^31 - 1")
    if tokens.min() < 0 or tokens.max() > 0xFFFF:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}: the format holds 16 bits")
    atomic_write(Path(path), _header(tokens.size), np.ascontiguousarray(tokens, dtype="<u2").tobytes())


class Shard:
    """The tokens of one shard file, read on demand: `shard[start:stop]` is an array (N,).

    The file is read, not mapped. Access to a mapped page of a truncated file kills the process (SIGBUS), and mapped
    pages count as memory of the process. The file stays open, so it can be deleted or replaced during a run. Reading
    raises `UserError` if the file was written to.
    """

    def __init__(self, path: Path, descriptor: int, count: int) -> None:
        self.path, self._descriptor, self._count = path, descriptor, count
        self._opened = _file_state(descriptor)
        weakref.finalize(self, os.close, descriptor)
        if _HAS_FADVISE:
            # Windows are read in random order, so read-ahead wastes time. `prefetch` requests what is needed.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> NDArray[np.uint16]:
        """Read a slice of step 1. Raises `UserError` with the file name if the file cannot be read or has changed."""
        start, stop, step = part.indices(self._count)
        if step != 1:
            raise ValueError(f"a shard slice has step {step}; only 1 is supported")
        try:
            raw = self._read_bytes(HEADER_BYTES + 2 * start, 2 * max(0, stop - start))
            changed = len(raw) != 2 * max(0, stop - start) or _file_state(self._descriptor) != self._opened
        except OSError as error:
            raise UserError(f"{self.path}: the shard can no longer be read ({error.strerror})") from error
        if changed:
            raise UserError(f"{self.path}: the shard was changed while it was in use; restore the original file")
        return np.frombuffer(raw, dtype="<u2")

    def prefetch(self, start: int, stop: int) -> None:
        """Ask the system to read tokens `start` to `stop` into the page cache, without waiting."""
        if _HAS_FADVISE:
            os.posix_fadvise(self._descriptor, HEADER_BYTES + 2 * start, 2 * (stop - start), os.POSIX_FADV_WILLNEED)

    def _read_bytes(self, offset: int, count: int) -> bytes:
        """Read `count` bytes of the file, or fewer at its end."""
        parts, missing = [], count
        while missing:
            part = os.pread(self._descriptor, missing, offset)
            if not part:
                break
            parts.append(part)
            offset, missing = offset + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _file_state(descriptor: int) -> tuple[int, int]:
    """Return size and modification time, which change when the file is written to."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def open_shard(path: str | Path, vocab_size: int, whole: bool = False) -> Shard:
    """Open a shard file.

    Arguments: `vocab_size`: every token must be less; `whole`: check every token now. Otherwise only the first
    `CHECKED_AT_OPENING` tokens are checked here, and `Tokens` checks each token that it reads. Raises `UserError` with
    the file name if magic number, version, count, size or a token is wrong.
    """
    file = Path(path)
    with open_untrusted(file, "the shard") as stream:
        size, raw = os.fstat(stream.fileno()).st_size, stream.read(HEADER_BYTES)
        if len(raw) < HEADER_BYTES:
            raise UserError(f"{path}: not a shard: {size} bytes, shorter than its header of {HEADER_BYTES}")
        magic, version, count = (int(value) for value in np.frombuffer(raw, dtype="<i4", count=3))
        if magic != MAGIC:
            raise UserError(f"{path}: not a shard: it starts with {magic} instead of the magic number {MAGIC}")
        if version != VERSION:
            raise UserError(f"{path}: shard version {version}; this program reads version {VERSION}")
        if count <= 0:
            raise UserError(f"{path}: the header says {count} tokens; a shard has at least one")
        if size != HEADER_BYTES + 2 * count:
            raise UserError(
                f"{path}: the header says {count} tokens, that is {HEADER_BYTES + 2 * count} bytes, but the file has "
                f"{size}"
            )
        try:
            descriptor = os.dup(stream.fileno())
        except OSError as error:
            raise UserError(f"{path}: cannot keep the file open ({error.strerror}); see `ulimit -n`") from error
    shard = Shard(file, descriptor, count)
    for start in range(0, count if whole else min(count, CHECKED_AT_OPENING), _CHECK_CHUNK_TOKENS):
        stop = start + (_CHECK_CHUNK_TOKENS if whole else CHECKED_AT_OPENING)
        check_tokens(shard[start:stop], vocab_size, str(path), start)
    return shard


def check_tokens(tokens: NDArray[np.uint16], vocab_size: int, name: str, start: int) -> None:
    """Raise `UserError` if a token of `tokens` (N,), which start at `start` of shard `name`, is ≥ `vocab_size`."""
    if vocab_size > 0xFFFF or not tokens.size or int(tokens.max()) < vocab_size:
        return
    worst = int(tokens.argmax())
    raise UserError(
        f"{name}: token {tokens[worst]} at position {start + worst}, but the tokenizer has {vocab_size} symbols; use "
        "the tokenizer of the shards"
    )


class ShardWriter:
    """A context manager that appends tokens to shards `{name}_{split}_000000.bin`, … in `folder`.

    The files are complete after the context exits. For an atomic result, write into a temporary folder and rename it.
    Arguments: `limit`: maximum tokens of one shard.
    """

    def __init__(self, folder: Path, name: str, split: str, limit: int = SHARD_TOKENS) -> None:
        self.folder, self.name, self.split, self.limit = folder, name, split, limit
        self.files: list[tuple[str, int]] = []
        """File name and token count of every finished shard."""
        self._file: BinaryIO | None = None
        self._count = 0

    def __enter__(self) -> ShardWriter:
        return self

    def append(self, tokens: NDArray[np.uint16]) -> None:
        """Append `tokens` (N,)."""
        for part in self._split_at_limit(tokens):
            if self._file is None:
                self._file = (self.folder / self._next_name()).open("wb")
                self._file.write(bytes(HEADER_BYTES))
            self._file.write(np.ascontiguousarray(part, dtype="<u2").tobytes())
            self._count += part.size

    def _split_at_limit(self, tokens: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
        while tokens.size:
            if self._count == self.limit:
                self._finish()
            space = self.limit - self._count
            yield tokens[:space]
            tokens = tokens[space:]

    def _next_name(self) -> str:
        return f"{self.name}_{self.split}_{len(self.files):06d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        # The header is written last, so an incomplete file is not a valid shard.
        self._file.seek(0)
        self._file.write(_header(self._count))
        self._file.close()
        self.files.append((self._next_name(), self._count))
        self._file, self._count = None, 0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        elif self._file is not None:
            self._file.close()
