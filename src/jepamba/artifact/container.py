"""The container: magic, version, JSON header, compressed streams, checksum (docs/artifact-format.md).

A container holds streams and a header; `store.py` interprets them. Reading has two steps, so that a reader can check
what the file declares before anything is decompressed: `open_container` reads and checks the header with the tables of
blocks and streams, `Container.decode` returns the values.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from jepamba.artifact.codecs import CODECS, encode_smallest
from jepamba.artifact.streams import DTYPES, STREAM_BITS, StreamSpec, Values
from jepamba.artifact.strict_json import parse_object, read_count, read_field
from jepamba.errors import UserError
from jepamba.io import atomic_write, read_untrusted

MAGIC = b"\x89JPA\r\n\x1a\n"
"""Reveals a transfer that rewrites line ends or clears the eighth bit, as in PNG (RFC 2083, section 3.1)."""
VERSION = 4
PREAMBLE = struct.Struct("<8sIIQ")
"""Magic, version, bytes of the compressed header, bytes of the payload; little-endian."""
CHECKSUM_BYTES = 32

MAX_FILE_BYTES = 1 << 30
MAX_HEADER_BYTES = 4 << 20
"""Maximum size of the header's JSON before compression."""
MAX_STREAMS = 10_000
MAX_VALUES = 1 << 29
"""Maximum number of values of all streams together."""


@dataclass(frozen=True)
class CodecBlock:
    """Consecutive streams that are compressed together, with the codec's name and the position in the payload."""

    codec: str
    offset: int
    length: int
    streams: tuple[StreamSpec, ...]


@dataclass(frozen=True)
class Container:
    """An opened container with valid tables. No stream is decoded yet."""

    path: Path
    header: dict[str, Any]
    """The header without the tables of streams and blocks."""
    blocks: tuple[CodecBlock, ...]
    payload: bytes
    file_bytes: int

    @property
    def streams(self) -> dict[str, StreamSpec]:
        """All streams by name, in the order of the file."""
        return {stream.name: stream for block in self.blocks for stream in block.streams}

    def decode(self) -> dict[str, Values]:
        """Return the values of all streams, by name.

        Raises `UserError`, without the file's name, if a block does not hold exactly its streams.
        """
        decoded: dict[str, Values] = {}
        for block in self.blocks:
            data = self.payload[block.offset : block.offset + block.length]
            values = CODECS[block.codec].decode(block.streams, data)
            decoded.update(zip((stream.name for stream in block.streams), values, strict=True))
        return decoded


def invalid_artifact(path: Path, reason: str) -> UserError:
    """Return the error for an invalid artifact."""
    return UserError(f"{path}: not a valid artifact: {reason}")


def write_container(
    path: Path,
    header: Mapping[str, Any],
    groups: Iterable[Sequence[tuple[StreamSpec, Values]]],
) -> int:
    """Write `header` and the streams atomically. Each group becomes a block, with the codec that makes it smallest.

    Returns the size of the file in bytes. Raises `UserError` if the streams exceed the limits of the format, or the
    file cannot be written.
    """
    blocks: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    payload: list[bytes] = []
    blocks_of = [([stream for stream, _ in group], [values for _, values in group]) for group in groups]
    # NumPy's own threads, as many again for each of these, wait in loops and double the time.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor() as pool:
        encoded = list(pool.map(lambda block: encode_smallest(*block), blocks_of))
    for (streams, _), (codec, data) in zip(blocks_of, encoded, strict=True):
        rows += [
            {"name": s.name, "kind": s.kind, "bits": s.bits, "shape": list(s.shape), "block": len(blocks)}
            for s in streams
        ]
        blocks.append({"codec": codec, "length": len(data)})
        payload.append(data)
    text = json.dumps({**header, "blocks": blocks, "streams": rows}, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join(payload)
    packed_header = zlib.compress(text, 9)
    content = PREAMBLE.pack(MAGIC, VERSION, len(packed_header), len(body)) + packed_header + body
    content += hashlib.sha256(content).digest()
    if len(text) > MAX_HEADER_BYTES or len(content) > MAX_FILE_BYTES or len(rows) > MAX_STREAMS:
        raise UserError(f"{path}: the artifact would exceed what the format allows (docs/artifact-format.md)")
    try:
        atomic_write(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the artifact: {error.strerror}") from error
    return len(content)


def open_container(path: Path) -> Container:
    """Open the container at `path` and check its tables. Raises `UserError`, which names the file, if it is invalid."""
    content = read_untrusted(path, "the artifact", MAX_FILE_BYTES)
    try:
        header, payload = _split(content)
        blocks = _tables(header, len(payload))
    except UserError as error:
        raise invalid_artifact(path, str(error)) from error
    return Container(path, header, blocks, payload, len(content))


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    if not content.startswith(MAGIC):
        raise UserError("it does not start with the signature of a jepamba artifact")
    if len(content) < PREAMBLE.size + CHECKSUM_BYTES:
        raise UserError(f"it is cut short, {len(content)} bytes")
    _, version, header_bytes, payload_bytes = PREAMBLE.unpack_from(content)
    if version != VERSION:
        older = "; pack it again from its run, or read it with the jepamba that wrote it" if version < VERSION else ""
        raise UserError(f"format version {version}; this program reads version {VERSION}{older}")
    declared = PREAMBLE.size + header_bytes + payload_bytes + CHECKSUM_BYTES
    if declared != len(content):
        raise UserError(f"it declares {declared:,} bytes and has {len(content):,} (cut short, or changed)")
    if hashlib.sha256(content[:-CHECKSUM_BYTES]).digest() != content[-CHECKSUM_BYTES:]:
        raise UserError("its checksum does not match (damaged in transfer or storage)")
    start = PREAMBLE.size + header_bytes
    return parse_object(_inflate(content[PREAMBLE.size : start])), content[start:-CHECKSUM_BYTES]


def _inflate(packed: bytes) -> bytes:
    decoder = zlib.decompressobj()
    try:
        text = decoder.decompress(packed, MAX_HEADER_BYTES)
    except zlib.error as error:
        raise UserError("its header is damaged") from error
    if not decoder.eof or decoder.unused_data:
        raise UserError(f"its header is damaged, or larger than {MAX_HEADER_BYTES:,} bytes")
    return text


def _tables(header: dict[str, Any], payload_bytes: int) -> tuple[CodecBlock, ...]:
    """Remove both tables from `header`, and check them against each other and against the size of the payload."""
    block_rows = [_row(row, "block table") for row in read_field(header, "blocks", list)]
    stream_rows = [_row(row, "stream table") for row in read_field(header, "streams", list)]
    del header["blocks"], header["streams"]
    if len(stream_rows) > MAX_STREAMS:
        raise UserError(f"{len(stream_rows):,} streams, the format allows {MAX_STREAMS:,}")
    streams = [_stream(row) for row in stream_rows]
    names = {stream.name for stream in streams}
    if len(names) != len(streams):
        raise UserError("two streams have the same name")
    if sum(stream.size for stream in streams) > MAX_VALUES:
        raise UserError(f"its streams declare more than {MAX_VALUES:,} values")
    owners = [read_count(row, "block", len(block_rows), "stream table") for row in stream_rows]
    members = {
        owner: tuple(stream for _, stream in rows)
        for owner, rows in groupby(zip(owners, streams, strict=True), key=lambda pair: pair[0])
    }
    if owners != sorted(owners) or list(members) != list(range(len(block_rows))):
        raise UserError("its tables of streams and blocks do not match")
    blocks, offset = [], 0
    for index, row in enumerate(block_rows):
        codec = read_field(row, "codec", str, "block table")
        if codec not in CODECS:
            raise UserError(f"unknown codec {codec[:40]!r}; this program has {', '.join(CODECS)}")
        length = read_count(row, "length", payload_bytes, "block table")
        blocks.append(CodecBlock(codec, offset, length, members[index]))
        offset += length
    if offset != payload_bytes:
        raise UserError(f"its blocks have {offset:,} bytes, its payload {payload_bytes:,}")
    return tuple(blocks)


def _row(row: Any, where: str) -> dict[str, Any]:
    if not isinstance(row, dict):
        raise UserError(f"its {where} holds something other than objects")
    return row


def _stream(row: dict[str, Any]) -> StreamSpec:
    where = "stream table"
    name, kind = read_field(row, "name", str, where), read_field(row, "kind", str, where)
    shape = read_field(row, "shape", list, where)
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise UserError("a stream's name is empty, too long or not printable")
    if kind not in DTYPES:
        raise UserError(f"stream {name} is of unknown kind {kind[:20]!r}")
    bits = read_count(row, "bits", 32, where)
    if bits not in STREAM_BITS[kind]:
        raise UserError(f"stream {name} of kind {kind} cannot have {bits} bits")
    if len(shape) > 8 or not all(type(size) is int and 0 < size <= MAX_VALUES for size in shape):
        raise UserError(f"stream {name} has an impossible shape")
    stream = StreamSpec(name, kind, bits, tuple(shape))
    if stream.size > MAX_VALUES:
        raise UserError(f"stream {name} declares more than {MAX_VALUES:,} values")
    return stream
