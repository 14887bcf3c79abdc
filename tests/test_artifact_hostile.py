"""Damaged and hostile artifacts: each is refused with one line that names the file, before it costs anything."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.artifact import Artifact, container, inspect, load_artifact, save_artifact
from jepamba.artifact.codecs import CODECS
from jepamba.artifact.container import MAGIC, PREAMBLE, VERSION, open_container
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer

Header = dict[str, Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The smallest artifact that has every kind of stream."""
    torch.manual_seed(0)
    run = Run(
        data=Data(tokenizer="bytes", seq_len=8),
        model=Model(vocab_size=256, embed_dim=1, d_model=8, n_layer=1, d_state=2, headdim=8, mlp_mult=1.0),
        quant=Quant(large=64),
        train=Train(steps=1, tokens_per_step=8, tokens_per_micro=8),
    )
    path = tmp_path_factory.mktemp("sound") / "sound.jepa"
    save_artifact(path, LanguageModel(run.model, run.quant), run, ByteTokenizer())
    return path.read_bytes()


def refused(path: Path, content: bytes) -> str:
    """The one line with which `content` is refused as a file; it must name the file."""
    path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        load_artifact(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def parts_of(content: bytes) -> tuple[Header, bytes]:
    _, _, header_bytes, _ = PREAMBLE.unpack_from(content)
    start = PREAMBLE.size + header_bytes
    return json.loads(zlib.decompress(content[PREAMBLE.size : start])), content[start:-32]


def sealed(text: bytes, payload: bytes, version: int = VERSION) -> bytes:
    """A container with a right checksum around any header text and payload: what an attacker would write."""
    packed = zlib.compress(text, 1)
    content = PREAMBLE.pack(MAGIC, version, len(packed), len(payload)) + packed + payload
    return content + hashlib.sha256(content).digest()


def test_the_sound_file_is_sound(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    (tmp_path / "a").write_bytes(sealed(json.dumps(header).encode(), payload))
    load_artifact(tmp_path / "a")
    assert inspect(tmp_path / "a")["parameters"] > 0


def test_every_truncation_is_refused(tmp_path: Path, sound: bytes) -> None:
    for length in range(len(sound)):
        refused(tmp_path / "a", sound[:length])


def test_every_flipped_byte_is_refused(tmp_path: Path, sound: bytes) -> None:
    for position in range(len(sound)):
        for flip in (0x01, 0xFF):
            changed = bytearray(sound)
            changed[position] ^= flip
            refused(tmp_path / "a", bytes(changed))


@pytest.mark.parametrize("extra", [b"\0", b"more" * 1000])
def test_trailing_bytes_are_refused(tmp_path: Path, sound: bytes, extra: bytes) -> None:
    assert "declares" in refused(tmp_path / "a", sound + extra)


def test_other_files_are_refused(tmp_path: Path) -> None:
    assert "signature" in refused(tmp_path / "a", b"PK\x03\x04" + bytes(5000))
    assert "signature" in refused(tmp_path / "a", b"")
    with pytest.raises(UserError, match="cannot read"):
        load_artifact(tmp_path / "absent")
    with pytest.raises(UserError, match=r"not a regular file|cannot read"):
        load_artifact(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        load_artifact(tmp_path / "pipe")
    with pytest.raises(UserError, match="not a regular file"):
        load_artifact(Path("/dev/zero"))


def test_a_huge_file_is_not_read(tmp_path: Path, sound: bytes) -> None:
    with (tmp_path / "a").open("wb") as file:
        file.write(sound)
        file.truncate(1 << 40)  # sparse: takes no space
    with pytest.raises(UserError, match="the format allows"):
        load_artifact(tmp_path / "a")


def test_another_version_is_named(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    for version in (VERSION - 1, VERSION + 1):
        message = refused(tmp_path / "a", sealed(json.dumps(header).encode(), payload, version=version))
        assert f"format version {version}; this program reads version {VERSION}" in message
        assert ("pack it again" in message) == (version < VERSION)


@pytest.mark.parametrize("sizes", [(2**32 - 1, 0), (0, 2**60), (2**32 - 1, 2**64 - 1), (0, 0)])
def test_declared_sizes_are_compared_before_use(tmp_path: Path, sound: bytes, sizes: tuple[int, int]) -> None:
    content = PREAMBLE.pack(MAGIC, VERSION, *sizes) + sound[PREAMBLE.size : -32]
    refused(tmp_path / "a", content + hashlib.sha256(content).digest())


@pytest.mark.parametrize(
    "text",
    [
        b"", b"null", b"[]", b"{", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000,
        b'{"blocks": NaN}', b'{"blocks": 1e999}', b'{"blocks":[], "blocks":[]}', b'{"streams":[], "blocks":[]}',
        b'{"a":' + b"9" * 10_000 + b"}", b'{"blocks":[[]],"streams":[]}', b'{"blocks":[],"streams":[null]}',
    ],
)  # fmt: skip
def test_a_header_that_is_no_header_is_refused(tmp_path: Path, text: bytes) -> None:
    refused(tmp_path / "a", sealed(text, b""))


def test_a_header_bomb_is_refused(tmp_path: Path) -> None:
    assert "larger than" in refused(tmp_path / "a", sealed(b" " * (100 << 20) + b"{}", b""))


def put(header: Header, path: str, value: Any) -> None:
    *before, last = path.split(".")
    place: Any = header
    for key in before:
        place = place[int(key)] if isinstance(place, list) else place[key]
    if isinstance(place, list):
        place[int(last)] = value
    else:
        place[last] = value


WRONG: list[tuple[str, Any]] = [
    ("temperature", "1"), ("temperature", 0), ("temperature", -1.0), ("temperature", True), ("temperature", 10**400),
    ("tokenizer", []), ("tokenizer.kind", "pickle"), ("tokenizer.kind", 3), ("tokenizer.bytes", 2**60),
    ("tokenizer.bytes", 3), ("tokenizer.bytes", -1), ("tokenizer.fingerprint", "0" * 64),
    ("tokenizer.kind", "sentencepiece"),
    ("config", None), ("config.model", 5), ("config.model.n_layer", 10**9), ("config.model.n_layer", 2),
    ("config.model.n_layer", -1), ("config.model.n_layer", 1.0), ("config.model.vocab_size", 2**60),
    ("config.model.vocab_size", 0), ("config.model.vocab_size", 65536), ("config.model.d_model", 65536),
    ("config.model.mlp_mult", 1e308), ("config.model.mlp_mult", 1e9), ("config.model.d_state", 65536),
    ("config.model.chunk_size", 65536), ("config.model.chunk_size", 10**12), ("config.model.headdim", 3),
    ("config.model.expand", 10**6), ("config.model.tie", 9), ("config.model.mlp", "__import__('os')"),
    ("config.model.unheard_of", 1), ("config.model.cap", -1.0), ("config.quant.bits", 8), ("config.quant.bits", 5),
    ("config.quant.scale", "absmax"), ("config.quant.group", 0),
    ("config.quant.bits", 32), ("config.model.attention_every", 1), ("config.model.attention_window", 10**9),
    ("config.quant.bit_allocation", ["blocks.0.mixer.in_proj.weight=5"]),
    ("config.quant.bit_allocation", ["nothing=4"]),
    ("config.quant.bit_allocation", [f"w{index}=4" for index in range(50_000)]), ("config.quant.embedding", "int4"),
    ("config.quant.large", 10**30), ("config.quant.fp8_scale", "none"), ("config.data.seq_len", 2**50),
    ("config.data.seq_len", "8"), ("config.data.seq_len", 0), ("config.data.train", "/etc/passwd"),
    ("config.data.byte_separator", "no"), ("config.data.tokenizer", "bpe"), ("config.train", {"steps": 5}),
    ("tensors", {}), ("tensors.0", 1), ("tensors.0.name", "other"), ("tensors.0.quantizer", "fp32"),
    ("tensors.0.quantizer", "int99"), ("tensors.0.shape", [2**60]), ("tensors.0.shape", [256, 2]),
    ("tensors.0.shape", [256, 1.0]), ("tensors.0.shape", [0, 1]), ("tensors.0.shape", "256"), ("tensors.0.more", 1),
    ("tensors.1.name", "token_embed"), ("extra", "text"), ("unknown", 1),
    ("streams.0.name", "other"), ("streams.0.name", ""), ("streams.0.name", "a" * 300), ("streams.0.name", "a\nb"),
    ("streams.0.kind", "object"), ("streams.0.kind", "int"), ("streams.0.bits", 7), ("streams.0.bits", 2**62),
    ("streams.0.shape", [2**60]), ("streams.0.shape", [2**28, 2**28]), ("streams.0.shape", [-1]),
    ("streams.0.shape", [True]), ("streams.0.shape", [1] * 1000), ("streams.0.block", 99), ("streams.0.block", -1),
    ("streams.0.block", 1), ("streams.1.name", "token_embed/fp8"), ("streams.0", []), ("streams", {}),
    ("blocks.0.codec", "exec"), ("blocks.0.codec", ["brotli/packed"]), ("blocks.0.length", 2**60),
    ("blocks.0.length", -5), ("blocks.0.length", 0), ("blocks.0", None), ("blocks", "x"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "value"), WRONG, ids=lambda value: str(value)[:30])
def test_a_wrong_header_value_is_refused(tmp_path: Path, sound: bytes, place: str, value: Any) -> None:
    header, payload = parts_of(sound)
    put(header, place, value)
    refused(tmp_path / "a", sealed(json.dumps(header).encode(), payload))


def test_every_missing_key_is_refused(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    for later in ("attention_every", "attention_window"):
        del header["config"]["model"][later]

    def places(value: Any) -> list[Callable[[Any], Any]]:
        if not isinstance(value, dict):
            return []
        here: list[Callable[[Any], Any]] = [lambda at, key=key: at.pop(key) for key in value]
        return here + [lambda at, key=key, go=go: go(at[key]) for key in value for go in places(value[key])]

    removals = places(header) + [
        lambda at, table=table, key=key: at[table][0].pop(key)
        for table in ("tensors", "streams", "blocks")
        for key in header[table][0]
    ]
    assert len(removals) > 40
    for remove in removals:
        changed = copy.deepcopy(header)
        remove(changed)
        refused(tmp_path / "a", sealed(json.dumps(changed).encode(), payload))


@pytest.mark.parametrize("table", ["tensors", "streams", "blocks"])
def test_missing_doubled_and_reordered_rows_are_refused(tmp_path: Path, sound: bytes, table: str) -> None:
    header, payload = parts_of(sound)
    for change in (
        lambda rows: rows.pop(), lambda rows: rows.pop(0), lambda rows: rows.append(rows[0]),
        lambda rows: rows.insert(0, rows[0]), lambda rows: rows.clear(), lambda rows: rows.reverse(),
    ):  # fmt: skip
        changed = copy.deepcopy(header)
        change(changed[table])
        if table == "tensors" and changed["tensors"] == header["tensors"][::-1]:
            continue  # the order of this table means nothing
        refused(tmp_path / "a", sealed(json.dumps(changed).encode(), payload))


def test_only_settings_of_later_code_may_be_missing(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    whole = load_artifact_of(tmp_path, sound).run
    del header["config"]["model"]["attention_every"], header["config"]["model"]["attention_window"]
    assert load_artifact_of(tmp_path, sealed(json.dumps(header).encode(), payload)).run == whole
    del header["config"]["model"]["d_state"]
    assert "lacks model.d_state" in refused(tmp_path / "a", sealed(json.dumps(header).encode(), payload))


def load_artifact_of(tmp_path: Path, content: bytes) -> Artifact:
    (tmp_path / "b").write_bytes(content)
    return load_artifact(tmp_path / "b")


def test_a_thousand_layers_are_not_built(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    header["config"]["model"]["n_layer"] = 65536
    assert "layers" in refused(tmp_path / "a", sealed(json.dumps(header).encode(), payload))


@pytest.mark.parametrize("compressor", ["lzma", "brotli"])
@pytest.mark.parametrize("size", [1 << 26, 57])
def test_a_decompression_bomb_is_refused_without_its_memory(
    tmp_path: Path, sound: bytes, compressor: str, size: int
) -> None:
    header, payload = parts_of(sound)
    codec: Any = CODECS[f"{compressor}/packed"]
    bomb = brotli.compress(bytes(size), quality=1) if compressor == "brotli" else codec.compress(bytes(size))
    old = header["blocks"][0]["length"]
    header["blocks"][0] = {"codec": f"{compressor}/packed", "length": len(bomb)}
    content = sealed(json.dumps(header).encode(), bomb + payload[old:])
    tracemalloc.start()
    try:
        refused(tmp_path / "a", content)
        assert tracemalloc.get_traced_memory()[1] < 20 << 20  # LZMA looks back 16 MB
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", list(CODECS))
def test_every_codec_refuses_what_is_cut_changed_or_too_long(name: str) -> None:
    from jepamba.artifact.streams import StreamSpec

    stream = StreamSpec("a", "int", 4, (1001,))
    values = torch.randint(-7, 8, (1001,), generator=torch.Generator().manual_seed(0)).to(torch.int8).numpy()
    codec = CODECS[name]
    data = codec.encode([stream], [values])
    assert (codec.decode([stream], data)[0] == values).all()
    for wrong in (data[:-1], data[: len(data) // 2], data + b"\0", data + data, b"", b"\xff" * len(data)):
        with pytest.raises(UserError):
            codec.decode([stream], wrong)
    for count in (999, 1003):
        with pytest.raises(UserError):
            codec.decode([StreamSpec("a", "int", 4, (count,))], data)


def test_weights_that_no_quantizer_gives_or_not_finite_are_refused(tmp_path: Path, sound: bytes) -> None:
    header, payload = parts_of(sound)
    (tmp_path / "a").write_bytes(sound)
    opened = container.open_container(tmp_path / "a")
    offset = 0
    faults = {"int": b"\x88", "fp8": b"\x7f", "bf16": b"\x80\x7f", "fp32": b"\x00\x00\x80\x7f"}
    met = set()
    for index, block in enumerate(opened.blocks):
        kind = block.streams[0].kind
        if kind not in faults:
            continue
        met.add(kind)
        raw = b"".join(faults[kind] * (stream.packed_bytes // len(faults[kind])) for stream in block.streams)
        changed = copy.deepcopy(header)
        changed["blocks"][index] = {"codec": "stored/packed", "length": len(raw)}
        body = payload[: block.offset] + raw + payload[block.offset + block.length :]
        message = refused(tmp_path / "b", sealed(json.dumps(changed).encode(), body))
        assert "outside" in message or "not finite" in message
        offset += block.length
    assert met == set(faults)


def test_nothing_of_a_bad_file_remains(tmp_path: Path, sound: bytes) -> None:
    """A block that cannot be decoded after others that could: still one error, and no part of the result."""
    header, payload = parts_of(sound)
    last = len(payload) - header["blocks"][-1]["length"]
    refused(tmp_path / "a", sealed(json.dumps(header).encode(), payload[:last] + b"\xee" * (len(payload) - last)))


def load_or_refuse(path: Path, content: bytes) -> None:
    """An altered file with a right checksum: refused in one line, or a model of the declared shape."""
    path.write_bytes(content)
    message = ""
    try:
        artifact = load_artifact(path)
    except UserError as error:
        message = str(error)
    if message:
        assert str(path) in message
        assert "\n" not in message
    else:
        assert all(bool(p.isfinite().all()) for p in artifact.model.parameters())


@given(st.data())
@settings(max_examples=examples(60), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_changes_of_the_payload(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    header, payload = parts_of(sound)
    changed = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    load_or_refuse(tmp_path / "a", sealed(json.dumps(header).encode(), bytes(changed)))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)


@given(st.data())
@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_changes_of_the_header(tmp_path: Path, sound: bytes, data: st.DataObject) -> None:
    header, payload = parts_of(sound)
    place: Any = header
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 5)):
            place = place[key]
            continue
        place[key] = data.draw(JSON)
        break
    load_or_refuse(tmp_path / "a", sealed(json.dumps(header).encode("utf-8", "surrogatepass"), payload))


@given(st.binary(max_size=300))
@example(MAGIC)
@example(MAGIC + bytes(48))
@settings(max_examples=examples(100), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes(tmp_path: Path, content: bytes) -> None:
    for body in (content, MAGIC + content):
        (tmp_path / "a").write_bytes(body)
        with pytest.raises(UserError):
            open_container(tmp_path / "a")
