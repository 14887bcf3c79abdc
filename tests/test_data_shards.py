"""Tests of shards and token streams: round trips, and errors that name the damaged file."""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.data import Tokens, open_shard, write_shard
from jepamba.data import shards as shards_module
from jepamba.data.shards import ShardWriter
from jepamba.errors import UserError
from jepamba.text import ByteTokenizer, train_bpe


def tokens_up_to(limit: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(limit, size=count).astype(np.uint16)


def refusal(path: Path, vocab_size: int = 65536, whole: bool = False) -> str:
    with pytest.raises(UserError) as caught:
        open_shard(path, vocab_size, whole)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_format_is_the_published_one(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.bin", np.array([1, 513, 65535]))
    expected = struct.pack("<256i", 20240520, 1, 3, *[0] * 253) + struct.pack("<3H", 1, 513, 65535)
    assert (tmp_path / "a.bin").read_bytes() == expected


def test_round_trip_is_read_only(tmp_path: Path) -> None:
    tokens = tokens_up_to(65536, 5000)
    write_shard(tmp_path / "a.bin", tokens)
    opened = open_shard(tmp_path / "a.bin", 65536)
    assert len(opened) == 5000
    assert opened[:].dtype == np.uint16
    assert np.array_equal(opened[:], tokens)
    for part in (slice(7, 7), slice(4990, 6000), slice(-3, None), slice(9, 2)):
        assert np.array_equal(opened[part], tokens[part])
    with pytest.raises(ValueError, match="read-only"):
        opened[:1][0] = 1
    with pytest.raises(ValueError, match="step 2"):
        opened[::2]
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize("tokens", [np.array([], dtype=np.uint16), np.array([-1]), np.array([65536])])
def test_tokens_that_do_not_fit_are_not_written(tmp_path: Path, tokens: np.ndarray) -> None:
    with pytest.raises(ValueError, match="the format holds"):
        write_shard(tmp_path / "a.bin", tokens)
    assert not list(tmp_path.iterdir())


def header(magic: int = 20240520, version: int = 1, count: int = 4) -> bytes:
    return struct.pack("<256i", magic, version, count, *[0] * 253)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "shorter than its header"),
        (header()[:1023], "shorter than its header"),
        (header(magic=20240521) + bytes(8), "magic number 20240520"),
        (struct.pack(">256i", 20240520, 1, 4, *[0] * 253) + bytes(8), "magic number 20240520"),
        (header(version=2) + bytes(8), "shard version 2"),
        (header(count=0), "0 tokens"),
        (header(count=-4) + bytes(8), "-4 tokens"),
        (header(count=5) + bytes(8), "5 tokens, that is 1034 bytes, but the file has 1032"),
        (header(count=2**31 - 1) + bytes(8), "but the file has 1032"),
        (header() + bytes(7), "but the file has 1031"),
        (header() + bytes(9), "but the file has 1033"),
        (header() + struct.pack("<4H", 1, 99, 100, 2), "token 100 at position 2, but the tokenizer has 100 symbols"),
    ],
)
def test_bad_shards_are_refused_by_name(tmp_path: Path, content: bytes, complaint: str) -> None:
    (tmp_path / "bad_train_0.bin").write_bytes(content)
    assert complaint in refusal(tmp_path / "bad_train_0.bin", 100)


def test_missing_shards_and_folders_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "none.bin")
    (tmp_path / "folder.bin").mkdir()
    refusal(tmp_path / "folder.bin")


def test_a_whole_check_includes_the_last_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards_module, "_CHECK_CHUNK_TOKENS", 7)
    for position in (0, 6, 7, 13, 19):
        tokens = np.zeros(20, dtype=np.uint16)
        tokens[position] = 256
        write_shard(tmp_path / "a.bin", tokens)
        assert f"token 256 at position {position}," in refusal(tmp_path / "a.bin", 256, whole=True)
        assert open_shard(tmp_path / "a.bin", 257, whole=True)[position : position + 1].item() == 256


def test_tokens_are_checked_as_they_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening checks the first tokens, reading checks the rest, and the error names file and position."""
    monkeypatch.setattr(shards_module, "CHECKED_AT_OPENING", 8)
    write_shard(tmp_path / "good_train_0.bin", np.arange(20))
    tokens = np.zeros(20, dtype=np.uint16)
    tokens[7] = 300
    write_shard(tmp_path / "bad_train_0.bin", tokens)
    assert "token 300 at position 7," in refusal(tmp_path / "bad_train_0.bin", 256)
    tokens[7], tokens[8] = 0, 300
    write_shard(tmp_path / "bad_train_0.bin", tokens)
    shards = [open_shard(tmp_path / f"{name}_train_0.bin", 256) for name in ("good", "bad")]
    stream = Tokens(shards, ByteTokenizer())
    assert stream.read(0, 28).tolist() == [*range(20), *[0] * 8]
    assert stream.read(29, 40).tolist() == [0] * 11
    for start, stop in ((28, 29), (0, 40), (15, 30)):
        with pytest.raises(UserError, match=r"bad_train_0\.bin: token 300 at position 8, .* has 256 symbols"):
            stream.read(start, stop)
    with pytest.raises(UserError, match=r"the tokens: token 300 at position 1,"):
        Tokens([np.array([1, 300], dtype=np.uint16)], ByteTokenizer()).read(0, 2)


@pytest.mark.parametrize("fate", ["deleted", "replaced"])
def test_a_shard_that_is_gone_is_read_to_its_end(tmp_path: Path, fate: str) -> None:
    tokens, path = tokens_up_to(256, 300_000), tmp_path / "a.bin"
    write_shard(path, tokens)
    opened = open_shard(path, 256)
    if fate == "deleted":
        path.unlink()
    else:
        write_shard(path, tokens[::-1].copy())
    assert np.array_equal(opened[1000:], tokens[1000:])


@pytest.mark.parametrize("fate", ["cut short", "emptied", "overwritten", "longer"])
def test_a_shard_that_is_damaged_while_open_is_refused(tmp_path: Path, fate: str) -> None:
    """With a mapped file, the first two cases would raise SIGBUS, and the third would give wrong tokens."""
    path = tmp_path / "a.bin"
    write_shard(path, tokens_up_to(256, 300_000))
    stream = Tokens([open_shard(path, 256)], ByteTokenizer())
    stream.read(200_000, 200_100)
    if fate == "cut short":
        os.truncate(path, 300_000)
    elif fate == "emptied":
        os.truncate(path, 0)
    else:
        time.sleep(0.02)
        with path.open("r+b") as file:
            file.seek(300_000 if fate == "overwritten" else 0, os.SEEK_SET if fate == "overwritten" else os.SEEK_END)
            file.write(bytes(2))
    with pytest.raises(UserError, match=r"a\.bin: the shard was changed while it was in use"):
        stream.read(200_000, 200_100)


@settings(max_examples=examples(60), deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=10), st.integers(1, 30))
def test_writer_splits_a_stream(tmp_path_factory: pytest.TempPathFactory, sizes: list[int], limit: int) -> None:
    folder = tmp_path_factory.mktemp("shards")
    stream = tokens_up_to(256, sum(sizes))
    with ShardWriter(folder, "text", "val", limit) as writer:
        for part in np.split(stream, np.cumsum(sizes)[:-1]):
            writer.append(part)
    names = [name for name, _ in writer.files]
    assert names == sorted(file.name for file in folder.glob("*_val_*.bin"))
    opened = [open_shard(folder / name, 256) for name in names]
    assert [len(shard) for shard in opened] == [count for _, count in writer.files]
    assert all(len(shard) == limit for shard in opened[:-1])
    assert np.array_equal(np.concatenate([shard[:] for shard in opened]), stream)


def test_a_writer_that_was_stopped_leaves_no_shard(tmp_path: Path) -> None:
    def interrupted() -> None:
        with ShardWriter(tmp_path, "text", "val", 100) as writer:
            writer.append(tokens_up_to(256, 50))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert "magic number" in refusal(tmp_path / "text_val_000000.bin")


@settings(max_examples=examples(100), deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=6), st.data())
def test_stream_over_shards_reads_any_slice(sizes: list[int], data: st.DataObject) -> None:
    whole = tokens_up_to(256, sum(sizes))
    tokens = Tokens(np.split(whole, np.cumsum(sizes)[:-1]), ByteTokenizer())
    assert len(tokens) == len(whole)
    start = data.draw(st.integers(0, len(whole)))
    stop = data.draw(st.integers(start, len(whole)))
    part = tokens.read(start, stop)
    assert part.dtype == np.uint16
    assert np.array_equal(part, whole[start:stop])
    for bad in ((-1, 0), (0, len(whole) + 1), (2, 1)):
        with pytest.raises(ValueError, match="outside a stream"):
            tokens.read(*bad)


def test_bytes_of_a_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.data.tokens._CHUNK_TOKENS", 5)
    texts = ["  the first one", "the second, naïve one\n\n", "▁third"]
    for tokenizer in (ByteTokenizer(), train_bpe(texts, 300)):
        ids = [np.append(np.uint16(tokenizer.bos_id), tokenizer.encode(text)) for text in texts]
        tokens = Tokens(ids, tokenizer)
        assert tokens.text() == "".join(texts).encode()
        assert tokens.decoded_bytes == len(tokens.text())
        assert tokens.text(0, len(ids[0])) == texts[0].encode()
        assert b"".join(tokens.text(i, i + 1) for i in range(len(tokens))) == tokens.text()
        assert tokens.bos_id == tokenizer.bos_id
    plain = Tokens([np.array([0, 65, 0], dtype=np.uint16)], ByteTokenizer(separator=False))
    assert plain.bos_id is None
    assert (plain.text(), plain.decoded_bytes) == (b"\0A\0", 3)
