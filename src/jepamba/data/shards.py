"""The shard format (spec section 7): 256 little-endian int32 of header, then 16-bit tokens.

Header: magic 20240520, version 1, token count, zeros.
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
"""Longer token streams are split into several shards."""
CHECKED_AT_OPENING = 1 << 16
"""Tokens at a shard's start that are checked when it is opened, so that the wrong tokenizer is found out early."""
_CHECKED_AT_ONCE = 1 << 24
_ADVISED = sys.platform == "linux"
"""Whether the system can be told which parts of a file will be read."""


def _header(count: int) -> bytes:
    header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
    header[:3] = MAGIC, VERSION, count
    return header.tobytes()


def write_shard(path: str | Path, tokens: NDArray[np.integer]) -> None:
    """Write `tokens` (N,) as one shard, all of it or nothing.

    Raises `ValueError` for a token outside 16 bits, no tokens, or too many for a header.
    """
    if not 0 < tokens.size < 2**31:
        raise ValueError(f"a shard of {tokens.size} tokens: the format holds 1 to 2^31 - 1")
    if tokens.min() < 0 or tokens.max() > 0xFFFF:
        raise ValueError(f"tokens from {tokens.min()} to {tokens.max()}: the format holds 16 bits")
    atomic_write(Path(path), _header(tokens.size), np.ascontiguousarray(tokens, dtype="<u2").tobytes())


class Shard:
    """The tokens of one shard file, read when they are asked for: `shard[start:stop]` is an array (N,).

    Read, not mapped: a system ends a process that touches mapped pages of a file cut short (SIGBUS), and counts what
    was read of it as the process's memory. The file stays open, so that it may be deleted or replaced by another in
    the middle of a run; one that is written to is refused.
    """

    def __init__(self, path: Path, descriptor: int, count: int) -> None:
        self.path, self._descriptor, self._count = path, descriptor, count
        self._opened = _version(descriptor)
        weakref.finalize(self, os.close, descriptor)
        if _ADVISED:
            # Windows come from anywhere: what lies around them is not wanted, and `prefetch` says what is.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, part: slice) -> NDArray[np.uint16]:
        """A slice of step 1. Raises `UserError` naming the file if it can no longer be read or is not what it was."""
        start, stop, step = part.indices(self._count)
        if step != 1:
            raise ValueError(f"a slice of step {step} of a shard")
        try:
            raw = self._bytes(HEADER_BYTES + 2 * start, 2 * max(0, stop - start))
            changed = len(raw) != 2 * max(0, stop - start) or _version(self._descriptor) != self._opened
        except OSError as error:
            raise UserError(f"{self.path}: the shard can no longer be read ({error.strerror})") from error
        if changed:
            raise UserError(
                f"{self.path}: the shard was changed while it was in use; put back the one that the run started with"
            )
        return np.frombuffer(raw, dtype="<u2")

    def prefetch(self, start: int, stop: int) -> None:
        """Have the system begin to read tokens `start` to `stop`, without waiting for them."""
        if _ADVISED:
            os.posix_fadvise(self._descriptor, HEADER_BYTES + 2 * start, 2 * (stop - start), os.POSIX_FADV_WILLNEED)

    def _bytes(self, offset: int, count: int) -> bytes:
        """`count` bytes of the file, fewer where it ends before."""
        parts, missing = [], count
        while missing:
            part = os.pread(self._descriptor, missing, offset)
            if not part:
                break
            parts.append(part)
            offset, missing = offset + len(part), missing - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _version(descriptor: int) -> tuple[int, int]:
    """What changes when an open file is written to: its size and the time of its last change."""
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def open_shard(path: str | Path, vocab_size: int, whole: bool = False) -> Shard:
    """The tokens of a shard file.

    Arguments: `vocab_size`, which every token must lie below; `whole`: look at every token now. Otherwise at the first
    ones only, so that opening a hundred gigabytes takes no time; `Tokens` looks at each that it reads. Raises
    `UserError` naming the file if magic, version, count, size or a token is wrong.
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
            raise UserError(f"{path}: cannot be kept open ({error.strerror}); see `ulimit -n`") from error
    shard = Shard(file, descriptor, count)
    for start in range(0, count if whole else min(count, CHECKED_AT_OPENING), _CHECKED_AT_ONCE):
        stop = start + (_CHECKED_AT_ONCE if whole else CHECKED_AT_OPENING)
        check_tokens(shard[start:stop], vocab_size, str(path), start)
    return shard


def check_tokens(tokens: NDArray[np.uint16], vocab_size: int, name: str, start: int) -> None:
    """Raise `UserError` if any of `tokens` (N,), at `start` of the shard `name`, is not below `vocab_size`."""
    if vocab_size > 0xFFFF or not tokens.size or int(tokens.max()) < vocab_size:
        return
    worst = int(tokens.argmax())
    raise UserError(
        f"{name}: token {tokens[worst]} at position {start + worst}, but the tokenizer has {vocab_size} symbols; use "
        "the tokenizer that the shards were made with"
    )


class ShardWriter:
    """Appends tokens to numbered shards `{name}_{split}_000000.bin`, … in `folder`; a context that closes the last one.

    The files are whole once the context is left; who needs all or nothing writes into a folder that is moved later.
    Arguments: `limit`, the most tokens of one shard.
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
        """Add `tokens` (N,)."""
        for part in self._fitting(tokens):
            if self._file is None:
                self._file = (self.folder / self._next_name()).open("wb")
                self._file.write(bytes(HEADER_BYTES))
            self._file.write(np.ascontiguousarray(part, dtype="<u2").tobytes())
            self._count += part.size

    def _fitting(self, tokens: NDArray[np.uint16]) -> Iterator[NDArray[np.uint16]]:
        while tokens.size:
            if self._count == self.limit:
                self._finish()
            room = self.limit - self._count
            yield tokens[:room]
            tokens = tokens[room:]

    def _next_name(self) -> str:
        return f"{self.name}_{self.split}_{len(self.files):06d}.bin"

    def _finish(self) -> None:
        if self._file is None:
            return
        # The magic goes in last: a shard that was cut short is none.
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
