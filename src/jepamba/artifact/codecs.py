"""Codecs, which compress a block of streams.

Each block is stored with the codec that makes it smallest; the container's header names it. `encode_smallest` decides
which codecs are tried. `register` adds a codec. A compressor that is not installed is an error at import.

Decoders do not trust the data. The stream table gives the decoded size, and no decoder may produce or allocate more.
"""

from __future__ import annotations

import lzma
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import brotli
import zstandard

from jepamba.artifact.ans import WeightCodec
from jepamba.artifact.streams import StreamSpec, Values, from_byte_planes, pack, to_byte_planes, unpack
from jepamba.errors import UserError


@runtime_checkable
class Codec(Protocol):
    """Encodes and decodes blocks. A block is a list of streams and the list of their values."""

    @property
    def name(self) -> str:
        """The name in the header."""
        ...

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        """Return the encoded block. The result is deterministic."""
        ...

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        """Return the values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        ...


@dataclass(frozen=True)
class ByteCodec:
    """A general-purpose compressor of the concatenated bytes of a block, in one of the two layouts of `streams.py`."""

    compressor: str
    layout: Literal["packed", "bytes"]
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]
    """Takes the data and the expected size. It must not produce more than one byte beyond this size."""

    @property
    def name(self) -> str:
        return f"{self.compressor}/{self.layout}"

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        write = pack if self.layout == "packed" else to_byte_planes
        return self.compress(b"".join(write(stream, array) for stream, array in zip(streams, values, strict=True)))

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        read = unpack if self.layout == "packed" else from_byte_planes
        sizes = [stream.packed_bytes if self.layout == "packed" else stream.byte_plane_bytes for stream in streams]
        expected = sum(sizes)
        raw = self.decompress(data, expected)
        if len(raw) != expected:
            raise UserError(f"{self.compressor} data hold {len(raw):,} bytes or more, but {expected:,} are declared")
        decoded, start = [], 0
        for stream, size in zip(streams, sizes, strict=True):
            decoded.append(read(stream, raw[start : start + size]))
            start += size
        return decoded


_LZMA_DICTIONARY = 16 << 20
"""Largest match distance of LZMA in bytes. It bounds the memory that a hostile file can require."""


def _lzma_filters(size: int) -> list[dict[str, int]]:
    """Return the filters of a raw LZMA2 stream of `size` bytes at level 9e.

    The stream is raw because the artifact has its own checksum. The dictionary is not larger than the data require,
    which bounds the memory of encoder and decoder.
    """
    dictionary = min(_LZMA_DICTIONARY, max(1 << 16, 1 << size.bit_length()))
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def _lzma_compress(raw: bytes) -> bytes:
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_lzma_filters(len(raw)))


def _lzma_decompress(data: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_lzma_filters(size))
    try:
        raw = decoder.decompress(data, max_length=size)
        while not decoder.eof and len(raw) <= size:  # the end marker may still follow
            more = decoder.decompress(b"", max_length=size + 1 - len(raw))
            if not more and decoder.needs_input:
                break
            raw += more
    except (lzma.LZMAError, EOFError) as error:
        raise UserError("lzma data are damaged") from error
    if not decoder.eof or decoder.unused_data:
        raise UserError(f"lzma data do not end after the {size:,} declared bytes")
    return raw


def _brotli_window(size: int) -> int:
    """Return the window of brotli for `size` bytes, log2 bytes."""
    return min(24, max(16, size.bit_length()))


def _declared_window(data: bytes) -> int:
    """Return the window that a brotli stream declares, log2 bytes (RFC 7932, section 9.1); 25 if invalid."""
    head = data[0] if data else 0x11
    if head & 1 == 0:
        return 16
    if head & 0x0E:
        return 17 + (head >> 1 & 7)
    return {0: 17, 1: 25}.get(head >> 4 & 7, 8 + (head >> 4 & 7))


def _brotli_compress(raw: bytes) -> bytes:
    compressed: bytes = brotli.compress(raw, quality=11, lgwin=_brotli_window(len(raw)))
    return compressed


def _brotli_decompress(data: bytes, size: int) -> bytes:
    if _declared_window(data) > _brotli_window(size):
        raise UserError(f"brotli data require more memory than {size:,} bytes need")
    decoder = brotli.Decompressor()
    pieces, total, pending = [], 0, data
    try:
        while not decoder.is_finished() and total <= size:
            # The decoder may exceed the limit by one of its internal blocks. The loop ends after it.
            piece = decoder.process(pending, output_buffer_limit=max(1, min(size + 1 - total, 1 << 20)))
            if not piece and not pending and decoder.can_accept_more_data():
                break
            pieces.append(piece)
            total += len(piece)
            pending = b""
    except brotli.error as error:
        raise UserError("brotli data are damaged") from error
    if not decoder.is_finished():
        raise UserError(f"brotli data do not end after the {size:,} declared bytes")
    return b"".join(pieces)


def _stored(raw: bytes, size: int = 0) -> bytes:
    return raw


CODECS: dict[str, Codec] = {}
"""All codecs by name. Of equal sizes, the first codec wins."""


def register(codec: Codec) -> None:
    """Add `codec` to those that `encode_smallest` tries. Raises `ValueError` if the name exists."""
    if codec.name in CODECS:
        raise ValueError(f"the codec {codec.name} already exists")
    CODECS[codec.name] = codec


register(ByteCodec("stored", "packed", _stored, _stored))
register(WeightCodec())
for _layout in ("packed", "bytes"):
    register(ByteCodec("lzma", _layout, _lzma_compress, _lzma_decompress))
    register(ByteCodec("brotli", _layout, _brotli_compress, _brotli_decompress))


def encode_all(streams: Sequence[StreamSpec], values: Sequence[Values]) -> dict[str, bytes]:
    """Return the block encoded with every codec, by name. The compressors run in threads, as they release the GIL."""
    # Both layouts of 8-bit values are identical, so one is enough.
    same = all(stream.bits == 8 for stream in streams)
    codecs = [codec for name, codec in CODECS.items() if not (same and name.endswith("/bytes"))]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda codec: codec.encode(streams, values), codecs))
    return {codec.name: data for codec, data in zip(codecs, results, strict=True)}


SMALL = 1 << 18
"""Maximum packed bytes of a block for which every codec is tried."""


def quick_bytes(streams: Sequence[StreamSpec], values: Sequence[Values]) -> int:
    """Return the bytes of the block with a fast general compressor: Zstandard, level 1, in the smaller layout.

    Long-distance matching finds repetitions up to 2²⁷ bytes apart. Without repetitions, level 1 is within 2 % of
    Zstandard 22, LZMA 9e and Brotli 11 (docs/results/weight-codec.md).
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=27, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    layouts = (
        b"".join(write(stream, array) for stream, array in zip(streams, values, strict=True))
        for write in (pack, to_byte_planes)
    )
    return min(len(compressor.compress(raw)) for raw in layouts)


def encode_smallest(streams: Sequence[StreamSpec], values: Sequence[Values]) -> tuple[str, bytes]:
    """Return the name of the codec that makes the block smallest, and the encoded block.

    The general compressors take minutes on a large block of weights, and win only if it has repetitions. They are not
    tried there unless `quick_bytes`, which finds repetitions too, is within 1 % of the weight codec.
    """
    large = sum(stream.packed_bytes for stream in streams) > SMALL
    if large and all(stream.kind != "u8" for stream in streams):
        data = CODECS[WeightCodec.name].encode(streams, values)
        if quick_bytes(streams, values) > 1.01 * len(data):
            return WeightCodec.name, data
    encoded = encode_all(streams, values)
    name = min(encoded, key=lambda codec: len(encoded[codec]))
    return name, encoded[name]
