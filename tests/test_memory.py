"""The memory of a long document is that of its text and of a batch of its tokens."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from jepamba.config import Data
from jepamba.data import build, corpus, open_folder
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, read_documents, train_bpe
from jepamba.text.unrestored import Unrestored


def peak_bytes(work: Callable[[], object]) -> int:
    """The most memory that `work` takes beyond what is in use before."""
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe"])
def test_memory_does_not_follow_the_document(tmp_path: Path, tokenizer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("text.byte_level.PIECE_CHARS", "text.pieces.PIECE_CHARS", "data.writer.BATCH_CHARS"):
        monkeypatch.setattr(f"jepamba.{module}", 1 << 16)
    used: Tokenizer = ByteTokenizer() if tokenizer == "bytes" else train_bpe(["слово и дело, the river "], 300)
    monkeypatch.setattr(SentencePieceTokenizer, "cut_chars", 1 << 12)
    peaks = []
    for size in (1, 4):
        text = "слово и дело, the river " * (size * 10_000)
        out = tmp_path / f"out{size}"
        peaks.append(peak_bytes(lambda text=text, out=out: build([text], used, out)))  # type: ignore[misc]
        tokens = open_folder(out).tokens("train")
        assert tokens.unrestored == Unrestored()
        assert (tokens.text_bytes, tokens.decoded_bytes) == (len(text.encode()),) * 2
        assert np.array_equal(tokens.read(0, len(tokens)), [used.bos_id, *used.encode(text)])
    assert peaks[1] < 1.5 * peaks[0]


@pytest.mark.parametrize("packing", [".txt", ".jsonl"])
def test_pieces_of_a_document_give_what_the_whole_gives(
    tmp_path: Path, packing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = "".join(
        f"The {number} rivers, слово {number * number} ☃.\n" + "\n" * (number % 7 == 0) for number in range(900)
    )
    path = tmp_path / f"long{packing}"
    path.write_text(whole if packing == ".txt" else json.dumps({"text": whole}) + "\n" + json.dumps({"text": "b"}))
    results = []
    for size in (1 << 20, 700):
        for module in ("text.documents", "text.pieces", "text.byte_level"):
            monkeypatch.setattr(f"jepamba.{module}.PIECE_CHARS", size)
        monkeypatch.setattr("jepamba.text.files.BLOCK", size)
        config = Data(train=str(path), tokenizer="bpe", vocab=300, cache=str(tmp_path / f"cache{size}"))
        found = corpus(config)
        assert "".join(tokens.text().decode() for tokens in (found.train, found.val)) in (
            whole,
            f"{whole}b",
            f"b{whole}",
        )
        results.append([found.tokenizer.fingerprint, found.overlap, found.is_end, found.train.text(), found.val.text()])
        results[-1] += [tokens.read(0, len(tokens)).tolist() for tokens in (found.train, found.val)]
    assert results[0] == results[1]
    assert results[0][2] == (packing == ".txt")


def test_memory_does_not_follow_a_document_whose_end_is_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("text.documents", "text.byte_level"):
        monkeypatch.setattr(f"jepamba.{module}.PIECE_CHARS", 1 << 16)
    monkeypatch.setattr("jepamba.text.files.BLOCK", 1 << 16)
    for name, value in (("MAX_SAMPLES", 1 << 12), ("MAX_REACH", 1 << 12)):
        monkeypatch.setattr(f"jepamba.text.near_duplicates.{name}", value)
    peaks = []
    for size in (1, 4):
        path = tmp_path / f"{size}.txt"
        path.write_text("слово и дело, the river\n" * (size * 40_000))
        config = Data(train=str(path), tokenizer="bytes", cache=str(tmp_path / "cache"))
        peaks.append(peak_bytes(lambda config=config: corpus(config)))  # type: ignore[misc]
    assert peaks[1] < 1.2 * peaks[0]


def test_a_long_document_is_read_into_twice_its_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.txt"
    path.write_text("the river answers. " * 400_000)
    size = path.stat().st_size
    assert peak_bytes(lambda: next(read_documents(path))) < 2.5 * size

    def read() -> None:
        for text in read_documents(path):
            assert len(text) == size
            # Here its text alone is held.
            assert tracemalloc.get_traced_memory()[0] < 1.5 * size

    peak_bytes(read)
