"""The compressed file format: write, validate and read (docs/compression.md)."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

from jepamba.compress.lanes import BATCH_LANES, MAX_LANES, LaneLayout
from jepamba.compress.range_coder import SYMBOLS_PER_BYTE
from jepamba.errors import UserError

MAGIC = b"\x89JPC\r\n\x1a\n"
"""Reveals a transfer that rewrites line ends or clears the eighth bit, like the artifact's magic."""
MAX_BYTES = 1 << 28
"""Maximum size of the original file."""
MAX_FILE_BYTES = 2 * MAX_BYTES
"""Maximum size of a compressed file."""

_PREAMBLE = struct.Struct("<8sHHIQI8s16s32s")
_SIZE = struct.Struct("<I")
OVERHEAD = _PREAMBLE.size + _SIZE.size
"""Bytes of a compressed file without its sections and their sizes."""


@dataclass(frozen=True)
class CompressedFile:
    """The content of a compressed file. With `tokens` = 0, the only section holds the original bytes."""

    size: int
    """Size of the original in bytes."""
    original: bytes
    """First 16 bytes of the original's sha256."""
    model: bytes
    """sha256 of the artifact."""
    variant: int
    """Of the steps: the version of the format."""
    tokens: int
    lanes: int
    probe: bytes
    sections: tuple[bytes, ...]
    """One section per batch of lanes."""
    corrections: bytes = b""

    def to_bytes(self) -> bytes:
        """Serialize the file."""
        preamble = _PREAMBLE.pack(
            MAGIC, self.variant, self.lanes, self.tokens, self.size, len(self.corrections), self.probe, self.original,
            self.model,
        )  # fmt: skip
        sizes = [_SIZE.pack(len(section)) for section in self.sections] if self.tokens else []
        content = b"".join([preamble, *sizes, *self.sections, self.corrections])
        return content + _SIZE.pack(zlib.crc32(content))

    @classmethod
    def from_bytes(cls, content: bytes) -> CompressedFile:
        """Parse and validate a file, as far as possible without the model. Raises `UserError` if it is invalid."""
        if not content.startswith(MAGIC):
            raise UserError("it does not start with the signature of `jepamba compress`")
        if len(content) < OVERHEAD:
            raise UserError(f"it is cut short: {len(content)} bytes")
        _, variant, lanes, tokens, size, changes, probe, original, model = _PREAMBLE.unpack_from(content)
        if variant not in BATCH_LANES:
            raise UserError(f"format version {variant}; this program reads versions {', '.join(map(str, BATCH_LANES))}")
        if zlib.crc32(content[: -_SIZE.size]) != _SIZE.unpack(content[-_SIZE.size :])[0]:
            raise UserError("its checksum does not match (cut short, or damaged in transfer or storage)")
        body = content[_PREAMBLE.size : -_SIZE.size]
        if tokens == 0:
            if lanes or changes or size != len(body):
                raise UserError(f"it declares {size:,} stored bytes but has {len(body):,}")
            return cls(size, original, model, variant, 0, 0, probe, (body,))
        if not 1 <= lanes <= min(tokens, MAX_LANES):
            raise UserError(f"it declares {tokens:,} tokens in {lanes:,} lanes")
        sections = _sections(body, LaneLayout(tokens, lanes, variant), changes)
        return cls(size, original, model, variant, tokens, lanes, probe, sections[:-1], sections[-1])


def _sections(body: bytes, layout: LaneLayout, changes: int) -> tuple[bytes, ...]:
    """Split `body` into the sections of the batches and, last, the section of the corrections."""
    batches = layout.batches
    start = len(batches) * _SIZE.size
    sizes = [size for (size,) in _SIZE.iter_unpack(body[:start])] if len(body) >= start else []
    sizes.append(changes)
    if len(sizes) != len(batches) + 1 or start + sum(sizes) != len(body):
        raise UserError(f"the sizes of its sections do not add up to its {len(body):,} bytes")
    if any(size % 4 for size in sizes):
        raise UserError("a section is not a whole number of 32-bit words")
    for lanes, size in zip(batches, sizes, strict=False):
        tokens = layout.start(lanes[-1] + 1) - layout.start(lanes[0])
        if tokens > size * SYMBOLS_PER_BYTE:
            raise UserError(f"it declares {tokens:,} tokens in {size:,} bytes, more than a section can hold")
    sections = []
    for size in sizes:
        sections.append(body[start : start + size])
        start += size
    return tuple(sections)
