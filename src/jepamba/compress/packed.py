"""The compressed file: what lies where, and what is checked before any of it is believed (docs/compression.md)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from jepamba.compress.coder import SYMBOLS_PER_BYTE
from jepamba.compress.lanes import MOST, LaneLayout
from jepamba.errors import UserError

MAGIC = b"\x89JPC\r\n\x1a\n"
"""As the artifact's: a transfer that rewrites line ends or drops the eighth bit destroys it."""
VERSION = 1
MAX_BYTES = 1 << 28
"""Of a file to compress; a day's work."""

_PREAMBLE = struct.Struct("<8sHHIQI8s16s32s")
_SIZE = struct.Struct("<I")
OVERHEAD = _PREAMBLE.size + _SIZE.size
"""Bytes of a compressed file besides its sections and their sizes."""


@dataclass(frozen=True)
class CompressedFile:
    """The content of a compressed file. Without tokens, `sections` is one: the bytes themselves."""

    size: int
    """Bytes of the original."""
    original: bytes
    """The first 16 bytes of its sha256."""
    model: bytes
    """sha256 of the artifact."""
    tokens: int
    lanes: int
    probe: bytes
    sections: tuple[bytes, ...]
    """One for each batch of lanes."""
    corrections: bytes = b""

    def to_bytes(self) -> bytes:
        """The file."""
        head = _PREAMBLE.pack(
            MAGIC, VERSION, self.lanes, self.tokens, self.size, len(self.corrections), self.probe, self.original,
            self.model,
        )  # fmt: skip
        sizes = [_SIZE.pack(len(section)) for section in self.sections] if self.tokens else []
        content = b"".join([head, *sizes, *self.sections, self.corrections])
        return content + _SIZE.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(cls, content: bytes) -> CompressedFile:
        """The content of a file; everything that can be checked without the model holds. Raises `UserError`."""
        if not content.startswith(MAGIC):
            raise UserError("it does not start as what `jepamba compress` writes")
        if len(content) < OVERHEAD:
            raise UserError(f"it is cut short, {len(content)} bytes")
        _, version, lanes, tokens, size, changes, probe, original, model = _PREAMBLE.unpack_from(content)
        if version != VERSION:
            raise UserError(f"format version {version}; this program reads version {VERSION}")
        if zlib.crc32(content[: -_SIZE.size]) != _SIZE.unpack(content[-_SIZE.size :])[0]:
            raise UserError("its checksum does not match (cut short, or damaged in transfer or storage)")
        rest = content[_PREAMBLE.size : -_SIZE.size]
        if tokens == 0:
            if lanes or changes or size != len(rest):
                raise UserError(f"it declares {size:,} stored bytes and has {len(rest):,}")
            return cls(size, original, model, 0, 0, probe, (rest,))
        if not 1 <= lanes <= min(tokens, MOST):
            raise UserError(f"it declares {tokens:,} tokens in {lanes:,} lanes")
        sections = _sections(rest, LaneLayout(tokens, lanes), changes)
        return cls(size, original, model, tokens, lanes, probe, sections[:-1], sections[-1])


def _sections(rest: bytes, cut: LaneLayout, changes: int) -> tuple[bytes, ...]:
    """The sections of the batches and that of the corrections, out of sizes and bytes."""
    batches = cut.batches
    start = len(batches) * _SIZE.size
    sizes = [size for (size,) in _SIZE.iter_unpack(rest[:start])] if len(rest) >= start else []
    sizes.append(changes)
    if len(sizes) != len(batches) + 1 or start + sum(sizes) != len(rest):
        raise UserError(f"its sections do not fill its {len(rest):,} bytes")
    if any(size % 4 for size in sizes):
        raise UserError("a section is not made of whole words")
    for lanes, size in zip(batches, sizes, strict=False):
        tokens = cut.start(lanes[-1] + 1) - cut.start(lanes[0])
        if tokens > size * SYMBOLS_PER_BYTE:
            raise UserError(f"it declares {tokens:,} tokens in {size:,} bytes, more than a section can hold")
    found = []
    for size in sizes:
        found.append(rest[start : start + size])
        start += size
    return tuple(found)
