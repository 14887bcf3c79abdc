"""Codecs: what turns a block of streams into few bytes and back.

The smallest result wins, and its name is written in the container's header. Every codec in `CODECS` is tried on every
block that is small or no weights; on the rest the general compressors, which take minutes, are tried where a quick one
finds that they might win (`encode_smallest`), or when asked for. A better codec joins by `register`: it gets the values
themselves with their names, widths and shapes. A compressor that is not installed is an error at import, never skipped.

Reading trusts nothing: the decoded size is known from the stream table before decoding, and no decoder may produce, or
ask memory for, more than that.
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
from jepamba.artifact.streams import StreamSpec, Values, gather, pack, spread, unpack
from jepamba.errors import UserError


@runtime_checkable
class Codec(Protocol):
    """What a container asks of a codec. A block is a list of streams and, beside it, a list of their values."""

    @property
    def name(self) -> str:
        """The name in the header."""
        ...

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        """The block in bytes. Deterministic."""
        ...

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        """The values of `streams`, in order. Raises `UserError` for data that are not exactly such a block."""
        ...


@dataclass(frozen=True)
class ByteCodec:
    """A general-purpose compressor on the concatenated bytes of a block, in one of the two layouts."""

    compressor: str
    layout: Literal["packed", "bytes"]
    compress: Callable[[bytes], bytes]
    decompress: Callable[[bytes, int], bytes]
    """Called with the data and the exact size to expect; must never produce more than a byte beyond it."""

    @property
    def name(self) -> str:
        return f"{self.compressor}/{self.layout}"

    def encode(self, streams: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
        write = pack if self.layout == "packed" else spread
        return self.compress(b"".join(write(stream, array) for stream, array in zip(streams, values, strict=True)))

    def decode(self, streams: Sequence[StreamSpec], data: bytes) -> list[Values]:
        read = unpack if self.layout == "packed" else gather
        sizes = [stream.packed_bytes if self.layout == "packed" else stream.plain_bytes for stream in streams]
        expected = sum(sizes)
        raw = self.decompress(data, expected)
        if len(raw) != expected:
            raise UserError(f"{self.compressor} data hold {len(raw):,} bytes or more where {expected:,} are declared")
        decoded, start = [], 0
        for stream, size in zip(streams, sizes, strict=True):
            decoded.append(read(stream, raw[start : start + size]))
            start += size
        return decoded


_LZMA_DICTIONARY = 16 << 20
"""Largest distance that LZMA looks back, which bounds the memory that a hostile file can ask for."""


def _lzma_filters(size: int) -> list[dict[str, int]]:
    """xz's preset 9e as a raw LZMA2 stream for `size` bytes: the .xz container's checks would repeat the artifact's own
    checksum. Neither side looks back further than there are bytes, which bounds the memory of both."""
    dictionary = min(_LZMA_DICTIONARY, max(1 << 16, 1 << size.bit_length()))
    return [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": dictionary}]


def _lzma_compress(raw: bytes) -> bytes:
    return lzma.compress(raw, format=lzma.FORMAT_RAW, filters=_lzma_filters(len(raw)))


def _lzma_decompress(data: bytes, size: int) -> bytes:
    decoder = lzma.LZMADecompressor(format=lzma.FORMAT_RAW, filters=_lzma_filters(size))
    try:
        raw = decoder.decompress(data, max_length=size)
        while not decoder.eof and len(raw) <= size:  # the end marker may still be due
            more = decoder.decompress(b"", max_length=size + 1 - len(raw))
            if not more and decoder.needs_input:
                break
            raw += more
    except (lzma.LZMAError, EOFError) as error:
        raise UserError("lzma data are damaged") from error
    if not decoder.eof or decoder.unused_data:
        raise UserError(f"lzma data do not end after the {size:,} declared bytes")
    return raw


_ZSTD_WINDOW = 27
"""Largest window accepted on reading, log2 bytes: that of level 22."""


def _zstd_compress(raw: bytes) -> bytes:
    return zstandard.ZstdCompressor(level=22, write_checksum=False).compress(raw)


def _zstd_decompress(data: bytes, size: int) -> bytes:
    try:
        # The frame states its size, and the decoder would allocate it: look first.
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != size:
            raise UserError(f"zstd data state another size than the {size:,} declared bytes")
        decoder = zstandard.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW)
        return decoder.decompress(data, max_output_size=size, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise UserError("zstd data are damaged") from error


def _brotli_window(size: int) -> int:
    """How far brotli looks back in `size` bytes, log2."""
    return min(24, max(16, size.bit_length()))


def _stated_window(data: bytes) -> int:
    """The window that a brotli stream asks its reader to keep, log2 (RFC 7932, section 9.1); 25 if it is none."""
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
    if _stated_window(data) > _brotli_window(size):
        raise UserError(f"brotli data ask for more memory than the {size:,} declared bytes need")
    decoder = brotli.Decompressor()
    pieces, total, pending = [], 0, data
    try:
        while not decoder.is_finished() and total <= size:
            # The limit is a hint, kept to a block of the decoder's own; it stops a bomb within that block.
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
"""Every codec by name; the order decides between equal sizes."""


def register(codec: Codec) -> None:
    """Let `codec` compete for every block from now on. Raises `ValueError` for a name that is taken."""
    if codec.name in CODECS:
        raise ValueError(f"there is already a codec {codec.name}")
    CODECS[codec.name] = codec


register(ByteCodec("stored", "packed", _stored, _stored))
register(WeightCodec())
for _layout in ("packed", "bytes"):
    register(ByteCodec("lzma", _layout, _lzma_compress, _lzma_decompress))
    register(ByteCodec("zstd", _layout, _zstd_compress, _zstd_decompress))
    register(ByteCodec("brotli", _layout, _brotli_compress, _brotli_decompress))


def encode_all(streams: Sequence[StreamSpec], values: Sequence[Values]) -> dict[str, bytes]:
    """The block in the bytes of every codec, by codec name. The compressors run in threads, as they free the GIL."""
    # Of 8-bit values the two layouts are the same bytes: once is enough.
    same = all(stream.bits == 8 for stream in streams)
    codecs = [codec for name, codec in CODECS.items() if not (same and name.endswith("/bytes"))]
    with ThreadPoolExecutor(max_workers=os.cpu_count() or 1) as pool:
        results = list(pool.map(lambda codec: codec.encode(streams, values), codecs))
    return {codec.name: data for codec, data in zip(codecs, results, strict=True)}


SMALL = 1 << 18
"""Packed bytes of a block up to which every codec is tried."""


def quick_bytes(streams: Sequence[StreamSpec], values: Sequence[Values]) -> int:
    """Bytes of the block under a quick general compressor: Zstandard, level 1, looking back over all of it.

    The shorter of the two layouts. Long repetitions are found wherever they are (long-distance matching); as for single
    values, level 1 is within 2 % of what levels 22, LZMA 9e and Brotli 11 reach (docs/results/weight-codec.md).
    """
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=_ZSTD_WINDOW, enable_ldm=True)
    compressor = zstandard.ZstdCompressor(compression_params=parameters)
    layouts = (
        b"".join(write(stream, array) for stream, array in zip(streams, values, strict=True))
        for write in (pack, spread)
    )
    return min(len(compressor.compress(raw)) for raw in layouts)


def encode_smallest(streams: Sequence[StreamSpec], values: Sequence[Values]) -> tuple[str, bytes]:
    """Name and bytes of the codec that makes the block smallest, the first registered among equals.

    On a large block of weights the general compressors are left out unless a quick one comes within
    1 % of the weight codec: on weights they win by repetitions only, and it finds those as they do.
    """
    large = sum(stream.packed_bytes for stream in streams) > SMALL
    if large and all(stream.kind != "u8" for stream in streams):
        data = CODECS[WeightCodec.name].encode(streams, values)
        if quick_bytes(streams, values) > 1.01 * len(data):
            return WeightCodec.name, data
    encoded = encode_all(streams, values)
    name = min(encoded, key=lambda codec: len(encoded[codec]))
    return name, encoded[name]
