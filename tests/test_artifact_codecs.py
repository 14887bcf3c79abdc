"""Bit packing and codecs: exact both ways, the smallest wins, nothing is skipped."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_info, threadpool_limits

from jepamba.artifact import codecs, container, streams
from jepamba.artifact.codecs import CODECS, encode_all, encode_smallest
from jepamba.artifact.container import MAGIC, open_container, write_container
from jepamba.artifact.streams import (
    DTYPES,
    STREAM_BITS,
    StreamSpec,
    Values,
    from_byte_planes,
    pack,
    pack_integers,
    to_byte_planes,
    unpack,
    unpack_integers,
)
from jepamba.errors import UserError

KINDS = [(kind, bits) for kind, choices in STREAM_BITS.items() for bits in choices]


def random_values(kind: str, bits: int, shape: tuple[int, ...], seed: int) -> Values:
    random = np.random.default_rng(seed)
    if kind == "int":
        limit = 2 ** (bits - 1) - 1
        return np.asarray(random.normal(0, limit / 3, shape).round().clip(-limit, limit), dtype=np.int8)
    return np.asarray(random.integers(0, 2**bits, shape, dtype=np.uint64)).astype(DTYPES[kind])


def test_the_packed_layout_is_the_documented_one() -> None:
    # 0001 1111 1001 0000 | 00001 11111 10001 0 | 000001 111111 100001 000000
    assert pack_integers(np.array([1, -1, -7], dtype=np.int8), 4) == bytes([0b00011111, 0b10010000])
    assert pack_integers(np.array([1, -1, -15], dtype=np.int8), 5) == bytes([0b00001111, 0b11100010])
    assert pack_integers(np.array([1, -1, -31], dtype=np.int8), 6) == bytes([0b00000111, 0b11111000, 0b01000000])
    assert pack(StreamSpec("a", "bf16", 16, (2,)), np.array([0x3F80, 0x0001], dtype="<u2")) == b"\x80\x3f\x01\x00"
    assert (
        to_byte_planes(StreamSpec("a", "bf16", 16, (2,)), np.array([0x3F80, 0x0001], dtype="<u2"))
        == b"\x80\x01\x3f\x00"
    )
    assert to_byte_planes(StreamSpec("a", "int", 4, (3,)), np.array([-7, 0, 7], dtype=np.int8)) == bytes([0, 7, 14])


@given(st.sampled_from(KINDS), st.lists(st.integers(1, 9), max_size=3), st.integers(0, 2**32))
def test_layouts_round_trip(kind: tuple[str, int], shape: list[int], seed: int) -> None:
    stream = StreamSpec("s", *kind, tuple(shape))
    values = random_values(*kind, stream.shape, seed)
    for write, read, size in (
        (pack, unpack, stream.packed_bytes),
        (to_byte_planes, from_byte_planes, stream.byte_plane_bytes),
    ):
        data = write(stream, values)
        assert len(data) == size
        again = read(stream, data)
        assert again.dtype == np.dtype(DTYPES[stream.kind])
        assert again.shape == stream.shape
        assert (again == values).all()
        with pytest.raises(UserError):
            read(stream, data + b"\0")
        with pytest.raises(UserError):
            read(stream, data[:-1])


@pytest.mark.parametrize("bits", range(2, 9))
def test_packing_in_pieces_is_packing_at_once(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = random_values("int", bits, (1003,), 0)
    whole = pack_integers(values, bits)
    monkeypatch.setattr(streams, "_CHUNK", 8)
    assert pack_integers(values, bits) == whole
    assert (unpack_integers(whole, bits, 1003) == values).all()


@pytest.mark.parametrize("bits", range(2, 9))
def test_values_off_the_grid_are_refused_both_ways(bits: int) -> None:
    stream = StreamSpec("s", "int", bits, (8,))
    beyond = np.full(8, -(2 ** (bits - 1)), dtype=np.int8)
    for write in (pack, to_byte_planes):
        with pytest.raises(ValueError, match="outside"):
            write(stream, beyond)
    with pytest.raises(UserError, match="outside"):
        unpack(stream, pack_integers(beyond, bits))
    with pytest.raises(UserError, match="outside"):
        from_byte_planes(stream, bytes([255] * 8))


def test_padding_bits_must_be_zero() -> None:
    stream = StreamSpec("s", "int", 5, (3,))
    data = bytearray(pack(stream, np.array([1, 2, 3], dtype=np.int8)))
    data[-1] |= 1
    with pytest.raises(UserError, match="after the last"):
        unpack(stream, bytes(data))


@pytest.mark.parametrize("name", list(CODECS))
def test_every_codec_gives_blocks_back(name: str) -> None:
    block = [StreamSpec(f"s{i}", kind, bits, (3, 50 + i)) for i, (kind, bits) in enumerate(KINDS)]
    values = [random_values(s.kind, s.bits, s.shape, i) for i, s in enumerate(block)]
    data = CODECS[name].encode(block, values)
    assert data == CODECS[name].encode(block, values)
    for array, again in zip(values, CODECS[name].decode(block, data), strict=True):
        assert (array == again).all()


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(CODECS)), st.binary(max_size=200), st.integers(1, 60))
def test_garbage_is_refused_or_decodes_to_the_declared_size(name: str, data: bytes, count: int) -> None:
    stream = StreamSpec("s", "int", 4, (count,))
    try:
        (values,) = CODECS[name].decode([stream], data)
    except UserError:
        return
    assert values.shape == (count,)


@pytest.mark.parametrize("bits", range(2, 9))
def test_the_smallest_wins_and_comes_near_the_entropy(bits: int) -> None:
    stream = StreamSpec("q", "int", bits, (64, 512))
    values = random_values("int", bits, stream.shape, 0)
    sizes = {name: len(data) for name, data in encode_all([stream], [values]).items()}
    assert {name.split("/")[0] for name in sizes} == {"stored", "ans", "lzma", "brotli"}
    name, data = encode_smallest([stream], [values])
    assert len(data) == sizes[name] == min(sizes.values())
    counts = np.bincount(values.reshape(-1).astype(np.int64) + 128)
    p = counts[counts > 0] / values.size
    floor = -(p * np.log2(p)).sum() * values.size / 8
    assert floor <= len(data) < 1.03 * floor


def test_what_nothing_can_compress_is_stored() -> None:
    stream = StreamSpec("s", "fp32", 32, (1000,))
    assert encode_smallest([stream], [random_values("fp32", 32, (1000,), 0)])[0] == "stored/packed"


def test_a_better_codec_can_join(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        """Knows the values themselves, not their bytes: one byte for a block of equal integers."""

        name = "constant"

        def encode(self, block: Sequence[StreamSpec], values: Sequence[Values]) -> bytes:
            found = {int(v) for array in values for v in np.unique(array)}
            return bytes([found.pop()]) if len(found) == 1 else b"no" * 10**6

        def decode(self, block: Sequence[StreamSpec], data: bytes) -> list[Values]:
            return [np.full(stream.shape, data[0], dtype=DTYPES[stream.kind]) for stream in block]

    monkeypatch.setattr(codecs, "CODECS", dict(CODECS))
    monkeypatch.setattr("jepamba.artifact.container.CODECS", codecs.CODECS)
    codecs.register(Constant())
    with pytest.raises(ValueError, match="already"):
        codecs.register(Constant())
    stream = StreamSpec("threes", "int", 4, (4, 4))
    write_container(tmp_path / "a", {"x": 1}, [[(stream, np.full((4, 4), 3, dtype=np.int8))]])
    container = open_container(tmp_path / "a")
    assert container.blocks[0].codec == "constant"
    assert container.header == {"x": 1}
    assert (container.decode()["threes"] == 3).all()


@pytest.mark.parametrize("module", ["brotli", "zstandard"])
def test_a_missing_compressor_is_an_error_at_import(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    """The published script (openai/parameter-golf, pull request 903) skipped it in silence and broke the limit."""
    monkeypatch.delitem(sys.modules, "jepamba.artifact.codecs")
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=module):
        importlib.import_module("jepamba.artifact.codecs")


def test_the_container_is_laid_out_as_documented(tmp_path: Path) -> None:
    """Read by the description alone (docs/artifact-format.md), with nothing of the package."""
    import hashlib
    import json
    import struct
    import zlib

    stream = StreamSpec("noise", "fp32", 32, (64,))
    values = random_values("fp32", 32, (64,), 0)
    size = write_container(tmp_path / "a", {"hello": "world"}, [[(stream, values)]])
    raw = (tmp_path / "a").read_bytes()
    assert len(raw) == size
    magic, version, header_bytes, payload_bytes = struct.unpack("<8sIIQ", raw[:24])
    assert (magic, version) == (MAGIC, 4)
    assert 24 + header_bytes + payload_bytes + 32 == len(raw)
    assert hashlib.sha256(raw[:-32]).digest() == raw[-32:]
    assert json.loads(zlib.decompress(raw[24 : 24 + header_bytes])) == {
        "hello": "world",
        "blocks": [{"codec": "stored/packed", "length": 256}],
        "streams": [{"name": "noise", "kind": "fp32", "bits": 32, "shape": [64], "block": 0}],
    }
    assert raw[24 + header_bytes : -32] == values.tobytes()


def test_blocks_are_encoded_in_threads_whose_products_start_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def threads() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen: list[set[int]] = []

    def encode(*block: object) -> tuple[str, bytes]:
        seen.append(threads())
        return encode_smallest(*block)  # type: ignore[arg-type]

    monkeypatch.setattr(container, "encode_smallest", encode)
    values = random_values("int", 4, (4, 4), 0)
    with threadpool_limits(2, user_api="blas"):
        write_container(tmp_path / "a", {}, [[(StreamSpec(name, "int", 4, (4, 4)), values)] for name in "ab"])
        assert seen == [{1}, {1}]
        assert threads() == {2}
