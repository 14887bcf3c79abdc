"""The container: magic, version, JSON header, compressed streams, checksum. docs/artifact-format.md is its description.

The container knows streams of numbers and a header; what they mean (a model, a tokenizer) is `store`'s business.
Reading goes in two steps, so that a reader can check what the file declares against what it expects before anything is
decompressed: `open_container` reads, bounds and checks the table; `Container.decode` gives the values.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from jepamba.artifact.codecs import CODECS, encode_smallest
from jepamba.artifact.streams import DTYPES, STREAM_BITS, StreamSpec, Values
from jepamba.artifact.strict_json import parse, take, take_count
from jepamba.errors import UserError
from jepamba.io import atomic_write, read_untrusted

MAGIC = b"\x89JPA\r\n\x1a\n"
"""As in PNG (RFC 2083, section 3.1): a transfer that rewrites line ends or drops the eighth bit destroys it."""
VERSION = 2
PREAMBLE = struct.Struct("<8sIIQ")
"""Magic, version, bytes of the compressed header, bytes of the payload; little-endian."""
CHECKSUM_BYTES = 32

MAX_FILE_BYTES = 1 << 30
MAX_HEADER_BYTES = 4 << 20
"""Of the header's JSON, before compression."""
MAX_STREAMS = 10_000
MAX_VALUES = 1 << 29
"""Values of all streams together."""


@dataclass(frozen=True)
class CodecBlock:
    """Consecutive streams that are compressed together: the codec's name, and the block's place in the payload."""

    codec: str
    offset: int
    length: int
    streams: tuple[StreamSpec, ...]


@dataclass(frozen=True)
class Container:
    """An opened container, whose table is sound; no stream is decoded yet."""

    path: Path
    header: dict[str, Any]
    """What the writer put in; the tables of streams and blocks are taken out."""
    blocks: tuple[CodecBlock, ...]
    payload: bytes
    file_bytes: int

    @property
    def streams(self) -> dict[str, StreamSpec]:
        """Every stream by name, in order."""
        return {stream.name: stream for block in self.blocks for stream in block.streams}

    def decode(self) -> dict[str, Values]:
        """The values of every stream, by name.

        Raises `UserError`, without the file's name, where a block does not hold exactly its streams.
        """
        decoded: dict[str, Values] = {}
        for block in self.blocks:
            data = self.payload[block.offset : block.offset + block.length]
            values = CODECS[block.codec].decode(block.streams, data)
            decoded.update(zip((stream.name for stream in block.streams), values, strict=True))
        return decoded


def refusal(path: Path, what: str) -> UserError:
    """The one error of a bad artifact: names the file and what is wrong with it."""
    return UserError(f"{path}: not a sound artifact: {what}")


def write_container(
    path: Path,
    header: Mapping[str, Any],
    groups: Iterable[Sequence[tuple[StreamSpec, Values]]],
) -> int:
    """Write `header` and the streams; each group becomes one block in the codec that makes it smallest.

    The file appears under its name whole or not at all. Returns its size in bytes. Raises `UserError` if the
    streams exceed what a reader accepts, or the file cannot be written.
    """
    blocks: list[dict[str, Any]] = []
    table: list[dict[str, Any]] = []
    payload: list[bytes] = []
    for group in groups:
        streams = [stream for stream, _ in group]
        codec, data = encode_smallest(streams, [values for _, values in group])
        table += [
            {"name": s.name, "kind": s.kind, "bits": s.bits, "shape": list(s.shape), "block": len(blocks)}
            for s in streams
        ]
        blocks.append({"codec": codec, "length": len(data)})
        payload.append(data)
    text = json.dumps({**header, "blocks": blocks, "streams": table}, separators=(",", ":"), allow_nan=False).encode()
    body = b"".join(payload)
    packed_header = zlib.compress(text, 9)
    content = PREAMBLE.pack(MAGIC, VERSION, len(packed_header), len(body)) + packed_header + body
    content += hashlib.sha256(content).digest()
    if len(text) > MAX_HEADER_BYTES or len(content) > MAX_FILE_BYTES or len(table) > MAX_STREAMS:
        raise UserError(f"{path}: the artifact would exceed what the format allows (docs/artifact-format.md)")
    try:
        atomic_write(path, content)
    except OSError as error:
        raise UserError(f"{path}: cannot write the artifact: {error.strerror}") from error
    return len(content)


def open_container(path: Path) -> Container:
    """The container at `path`, checked up to its stream table. Raises `UserError` for any fault, naming the file."""
    content = read_untrusted(path, "the artifact", MAX_FILE_BYTES)
    try:
        header, payload = _split(content)
        blocks = _tables(header, len(payload))
    except UserError as error:
        raise refusal(path, str(error)) from error
    return Container(path, header, blocks, payload, len(content))


def _split(content: bytes) -> tuple[dict[str, Any], bytes]:
    if not content.startswith(MAGIC):
        raise UserError("it does not start with the magic of a jepamba artifact")
    if len(content) < PREAMBLE.size + CHECKSUM_BYTES:
        raise UserError(f"it is cut short, {len(content)} bytes")
    _, version, header_bytes, payload_bytes = PREAMBLE.unpack_from(content)
    if version != VERSION:
        raise UserError(f"format version {version}; this program reads version {VERSION}")
    declared = PREAMBLE.size + header_bytes + payload_bytes + CHECKSUM_BYTES
    if declared != len(content):
        raise UserError(f"it declares {declared:,} bytes and has {len(content):,} (cut short, or changed)")
    if hashlib.sha256(content[:-CHECKSUM_BYTES]).digest() != content[-CHECKSUM_BYTES:]:
        raise UserError("its checksum does not match (damaged in transfer or storage)")
    start = PREAMBLE.size + header_bytes
    return parse(_inflate(content[PREAMBLE.size : start])), content[start:-CHECKSUM_BYTES]


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
    """Take the two tables out of `header` and check them against each other and the payload's size."""
    block_rows = [_row(row, "block table") for row in take(header, "blocks", list)]
    stream_rows = [_row(row, "stream table") for row in take(header, "streams", list)]
    del header["blocks"], header["streams"]
    if len(stream_rows) > MAX_STREAMS:
        raise UserError(f"{len(stream_rows):,} streams, the format allows {MAX_STREAMS:,}")
    streams = [_stream(row) for row in stream_rows]
    names = {stream.name for stream in streams}
    if len(names) != len(streams):
        raise UserError("two streams have the same name")
    if sum(stream.size for stream in streams) > MAX_VALUES:
        raise UserError(f"its streams declare more than {MAX_VALUES:,} values")
    owners = [take_count(row, "block", len(block_rows), "stream table") for row in stream_rows]
    members = {
        owner: tuple(stream for _, stream in rows)
        for owner, rows in groupby(zip(owners, streams, strict=True), key=lambda pair: pair[0])
    }
    if owners != sorted(owners) or list(members) != list(range(len(block_rows))):
        raise UserError("its streams and blocks do not belong together")
    blocks, offset = [], 0
    for index, row in enumerate(block_rows):
        codec = take(row, "codec", str, "block table")
        if codec not in CODECS:
            raise UserError(f"unknown codec {codec[:40]!r}; this program has {', '.join(CODECS)}")
        length = take_count(row, "length", payload_bytes, "block table")
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
    name, kind, shape = (take(row, "name", str, where), take(row, "kind", str, where), take(row, "shape", list, where))
    if not 0 < len(name) <= 200 or not name.isprintable():
        raise UserError("a stream's name is empty, too long or not printable")
    if kind not in DTYPES:
        raise UserError(f"stream {name} is of unknown kind {kind[:20]!r}")
    bits = take_count(row, "bits", 32, where)
    if bits not in STREAM_BITS[kind]:
        raise UserError(f"stream {name} of kind {kind} cannot have {bits} bits")
    if len(shape) > 8 or not all(type(size) is int and 0 < size <= MAX_VALUES for size in shape):
        raise UserError(f"stream {name} has an impossible shape")
    stream = StreamSpec(name, kind, bits, tuple(shape))
    if stream.size > MAX_VALUES:
        raise UserError(f"stream {name} declares more than {MAX_VALUES:,} values")
    return stream
