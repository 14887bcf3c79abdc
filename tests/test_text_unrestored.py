"""Texts that a tokenizer cannot restore: the loss is said before training, and no figure is better for it."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import sentencepiece

from jepamba.data import build, write_shard
from jepamba.errors import UserError
from jepamba.evaluate import text_bytes
from jepamba.submission import About, write_submission
from jepamba.text import SentencePieceTokenizer, read_tokenizer
from jepamba.text.unrestored import Unrestored, compare
from processes import Running, records
from tiny import preset, text_file, tiny

KANJI = "漢字かな交じり文の試験。" * 40


@pytest.mark.parametrize(
    ("text", "decoded", "lost", "example"),
    [
        ("as it was", "as it was", 0, ""),
        ("two\nlines", "two lines", 1, r"'two\nlines' becomes 'two lines'"),
        ("漢字 text", " text", 6, "'漢字 text' becomes ' text'"),
        ("Capital", "capital", 1, "'Capital' becomes 'capital'"),
        ("ab", "ba", 1, "'ab' becomes 'ba'"),
        ("more", "more and more", 1, "'more' becomes 'more and more'"),
        ("a long text and an end", "a long text and an", 4, "'t and an end' becomes 't and an'"),
    ],
)
def test_loss_has_a_size_and_an_example(text: str, decoded: str, lost: int, example: str) -> None:
    assert compare(text, decoded.encode()) == Unrestored(lost, example)


def model(path: Path, text: str, **changes: Any) -> str:
    """Train a SentencePiece model with the lines of `text` at `path`. Returns its name."""
    blob = io.BytesIO()
    common: dict[str, Any] = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "hard_vocab_limit": False}
    common |= {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 3}
    lines = iter(text.splitlines())
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=lines, model_writer=blob, **(common | changes))
    path.write_bytes(blob.getvalue())
    return str(path)


def run(folder: Path, *words: str, code: int = 0) -> str:
    """The output of `jepamba WORDS` in a process of its own, which ends with `code`."""
    with Running(words, folder / f"process-{len(list(folder.iterdir()))}") as process:
        assert process.wait() == [code], process.output()
        return process.output()


def test_a_space_that_is_three_bytes_makes_no_figure_better(tmp_path: Path) -> None:
    """Without a piece for "▁" alone, a space decodes to the three bytes of "▁", which must not share the loss."""
    text = text_file(tmp_path)
    words = "\n".join(text.read_text().split())
    tokenizer = model(tmp_path / "nospace.model", words, add_dummy_prefix=False, normalization_rule_name="identity")
    settings = {"data__tokenizer": tokenizer, "data__holdout": 0.3, "train__val_every": 4}
    shown = run(tmp_path, "train", preset(tmp_path, tiny(text, **settings)), "--out", str(tmp_path / "run"))
    score = json.loads((tmp_path / "run" / "summary.json").read_text())["bpb_plain"]
    assert score["decoded_bytes"] > score["bytes"]
    assert f"validation text: the tokenizer cannot restore {score['unrestored_bytes']:,} of {score['bytes']:,}" in shown
    assert "▁" in shown.partition("validation text: ")[2].splitlines()[0]
    assert shown.index("validation text: ") < shown.index("plain windows")
    assert f"plain windows                    {score['bpb']:.4f} BPB\n" in shown
    # The last step: its bytes are of the original text too.
    step = records(tmp_path / "run")[-1]
    train = read_tokenizer(tokenizer)
    documents = text.read_text().split("\0")
    original = sum(len(document.encode()) for document in documents)
    decoded = sum(len(train.decode(train.encode(document), previous=1)) for document in documents)
    assert decoded > 1.2 * original
    size = sum(len(train.encode(document)) for document in documents)
    assert step["bytes"] / step["tokens"] < 1.12 * original / size
    with pytest.raises(UserError, match=": bits per decoded byte, which the challenge counts"):
        write_submission(tmp_path / "run", tmp_path / "submission", About())
    assert "cannot restore" in run(tmp_path, "submission", str(tmp_path / "run"), "-o", str(tmp_path / "s"), code=2)
    assert not (tmp_path / "s").exists()


def test_unknown_characters_are_said(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    tokenizer = model(tmp_path / "uni.model", text.read_text(), model_type="unigram", byte_fallback=False)
    settings = preset(tmp_path, tiny(text, data__tokenizer=tokenizer))
    run(tmp_path, "train", settings, "--out", str(tmp_path / "run"))
    artifact = str(tmp_path / "run" / "artifact.jepa")
    mixed, kanji = tmp_path / "mixed.txt", tmp_path / "kanji.txt"
    mixed.write_text("was quiet still. " * 10 + KANJI)
    kanji.write_text(KANJI)
    lost = len(KANJI.encode())
    first, second, *_ = run(tmp_path, "eval", artifact, "--data", str(mixed)).splitlines()
    assert "bits per byte  (plain" in first
    assert f"not of the whole text: the tokenizer cannot restore {lost:,} of {lost + 170:,} bytes; first, '" in second
    assert f"cannot restore {lost:,} of {lost:,}" in run(tmp_path, "eval", artifact, "--data", str(kanji), code=2)
    # The same before training: no step is taken, and no folder is made.
    kinds: list[tuple[Path, list[str]]] = [(kanji, []), (mixed, ["--train.val_tokens", "1"])]
    mixed.write_text(KANJI + " was quiet still. " * 10)
    for path, more in kinds:
        words = ["train", settings, "--data.val", str(path), *more, "--out", str(tmp_path / "late")]
        assert "nothing to score: the tokenizer cannot restore" in run(tmp_path, *words, code=2)
        assert not (tmp_path / "late").exists()


def test_the_beginning_of_a_text_is_not_better_for_what_is_lost_after_it(tmp_path: Path) -> None:
    text = text_file(tmp_path).read_text()
    blob = Path(model(tmp_path / "uni.model", text, model_type="unigram", byte_fallback=False)).read_bytes()
    tokens = build(["was quiet still. " * 10 + KANJI], SentencePieceTokenizer(blob), tmp_path / "out").tokens("train")
    part = text_bytes(tokens, 8)
    assert part.counted == "scaled"
    assert 0 < part.original <= part.decoded


def test_capitals_that_are_lost_are_said_and_cannot_be_submitted(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    rules = {"normalization_rule_name": "nmt_nfkc_cf", "remove_extra_whitespaces": False}
    tokenizer = model(tmp_path / "small.model", text.read_text(), **rules)
    one_line = tmp_path / "val.txt"
    one_line.write_text("The End Is The Beginning. " * 20)
    settings = preset(tmp_path, tiny(text, data__tokenizer=tokenizer, data__val=str(one_line)))
    shown = run(tmp_path, "train", settings, "--out", str(tmp_path / "run"))
    assert "validation text: the tokenizer cannot restore 100 of 520 bytes; first, 'The End Is T' becomes" in shown
    with pytest.raises(UserError, match="cannot restore 100 of the 520 bytes"):
        write_submission(tmp_path / "run", tmp_path / "submission", About())


def test_shards_without_a_record_are_labelled(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    tokenizer = model(tmp_path / "small.model", text.read_text())
    ids = read_tokenizer(tokenizer).encode(text.read_text())
    (tmp_path / "shards").mkdir()
    for split in ("train", "val"):
        write_shard(tmp_path / "shards" / f"a_{split}_0.bin", ids)
    settings = preset(tmp_path, tiny(tmp_path / "shards", data__tokenizer=tokenizer))
    shown = run(tmp_path, "train", settings, "--out", str(tmp_path / "run"))
    score = json.loads((tmp_path / "run" / "summary.json").read_text())["bpb_plain"]
    assert f"plain windows                    {score['bpb']:.4f} BPB by decoded bytes\n" in shown
    assert score["unrestored_bytes"] is None
    assert f"{score['bpb']:.4f} BPB by decoded bytes at step 8" in run(
        tmp_path, "watch", str(tmp_path / "run"), "--once"
    )
    shown = run(tmp_path, "eval", str(tmp_path / "run" / "artifact.jepa"), "--data", str(tmp_path / "shards"))
    assert "bits per byte by decoded bytes  (plain" in shown
    # Nothing says that these are another text, so the challenge's count can be claimed, under its name.
    assert ": val_bpb " in run(tmp_path, "submission", str(tmp_path / "run"), "-o", str(tmp_path / "s"))
    claims = json.loads((tmp_path / "s" / "submission.json").read_text())
    assert math.isclose(
        claims["val_bpb"] * claims["val_bytes"], claims["val_loss"] * claims["val_tokens"] / math.log(2)
    )
