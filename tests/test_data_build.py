"""Tests of building tokens from text: splits, cache, folders of shards, and errors for inputs that do not match."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jepamba.cli import main
from jepamba.config import Data
from jepamba.data import Tokens, build, corpus, is_shards, load_tokens, open_folder, write_shard
from jepamba.data.folder import is_folder
from jepamba.data.shared_files import trained_on
from jepamba.data.source import Source, cache_folder
from jepamba.errors import UserError
from jepamba.text import ByteTokenizer, Tokenizer, read_tokenizer, stdlib_documents, train_bpe
from jepamba.text.documents import read_pieces
from processes import Running
from tiny import TOPICS

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"

DOCUMENTS = TOPICS[:60]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes("\0".join(DOCUMENTS).encode())
    return path


def settings(train: Path | str, **changes: object) -> Data:
    """Settings for the byte tokenizer with a private cache, updated by `changes`."""
    folder = Path(train).parent if str(train) != "stdlib" else None
    values = {"train": str(train), "tokenizer": "bytes", "cache": str(folder / "cache") if folder else ""}
    return Data(**(values | changes))  # type: ignore[arg-type]


def documents_of(tokens: Tokens) -> list[str]:
    """Return the documents of a stream, split at BOS."""
    stream = tokens.read(0, len(tokens))
    cuts = np.flatnonzero(stream == tokens.bos_id)
    assert cuts[0] == 0
    parts = np.split(stream, cuts[1:])
    return [tokens.tokenizer.decode(part).decode() for part in parts]


def refusal(config: Data) -> str:
    with pytest.raises(UserError) as caught:
        corpus(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def files_under(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


def tokenizers() -> list[Tokenizer]:
    return [ByteTokenizer(), train_bpe(DOCUMENTS, 400)]


def test_a_built_folder_holds_the_documents(tmp_path: Path) -> None:
    for tokenizer in tokenizers():
        out = tmp_path / tokenizer.kind
        folder = build(DOCUMENTS, tokenizer, out, "val", shard_tokens=10_000)
        tokens = folder.tokens("val")
        assert documents_of(tokens) == DOCUMENTS
        assert len(list(out.glob("*_val_*.bin"))) == -(-len(tokens) // 10_000) > 5
        split = folder.splits["val"]
        size = sum(len(text.encode()) for text in DOCUMENTS)
        assert (split.documents, split.text_bytes, split.decoded_bytes) == (len(DOCUMENTS), size, size)
        assert (split.tokens, tokens.text_bytes, tokens.decoded_bytes) == (len(tokens), size, size)
        meta = json.loads((out / "meta.json").read_text())
        assert meta["tokenizer"]["fingerprint"] == tokenizer.fingerprint
        assert meta["tokenizer"]["separator"] is True
        assert open_folder(out).tokenizer.serialize() == tokenizer.serialize()
        assert is_shards(out)
        assert oct(out.stat().st_mode)[-3:] == "755"


def test_documents_with_a_nul_are_two_and_empty_ones_none(tmp_path: Path) -> None:
    folder = build(["a\0b", "", "\0", "c"], ByteTokenizer(), tmp_path / "out")
    assert documents_of(folder.tokens("train")) == ["a", "b", "c"]


def test_a_folder_without_separator_has_no_bos(tmp_path: Path) -> None:
    tokens = build(["ab", "c"], ByteTokenizer(separator=False), tmp_path / "out").tokens("train")
    assert tokens.read(0, 3).tolist() == [97, 98, 99]
    assert tokens.bos_id is None


def test_splits_are_added_to_a_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    build(["first"], ByteTokenizer(), out, "train")
    folder = build(["second"], ByteTokenizer(), out, "val")
    assert [folder.tokens(split).text() for split in ("train", "val")] == [b"first", b"second"]
    before = files_under(out)
    for documents, tokenizer, split, complaint in (
        (["x"], ByteTokenizer(), "val", "already has a 'val' split"),
        (["x"], train_bpe(["some text"], 264), "test", "another tokenizer"),
        ([], ByteTokenizer(), "test", "nothing to write"),
        (["x"], ByteTokenizer(), "../test", "letters and digits"),
    ):
        with pytest.raises(UserError, match=complaint):
            build(documents, tokenizer, out, split)
    assert files_under(out) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_folders_with_other_content_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "file").write_text("dear")
    for name, refusal in (("full", "exists"), ("file", "cannot be written")):
        with pytest.raises(UserError, match=f"{name}: {refusal}"):
            build(["x"], ByteTokenizer(), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert documents_of(build(["x"], ByteTokenizer(), tmp_path / "empty").tokens("train")) == ["x"]
    with pytest.raises(UserError, match="cannot be written"):
        build(["x"], ByteTokenizer(), tmp_path / "file" / "out")


@pytest.mark.parametrize("extend", [False, True])
def test_an_interrupted_build_leaves_nothing(tmp_path: Path, extend: bool) -> None:
    out = tmp_path / "out"
    if extend:
        build(["first"], ByteTokenizer(), out, "train")
    before = files_under(tmp_path)

    def interrupted() -> Iterator[str]:
        yield from ["x" * 5_000_000] * 2
        assert list(tmp_path.rglob("*.partial/*_val_*.bin"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(interrupted(), ByteTokenizer(), out, "val")
    assert files_under(tmp_path) == before
    assert out.exists() is extend


def test_what_a_killed_build_leaves_is_not_taken_for_complete(tmp_path: Path, text: Path) -> None:
    config = settings(text)
    corpus(config)
    (entry,) = (Path(config.cache) / "tokens").iterdir()
    # As after a kill: the hidden folder with finished shards, but without the renaming that completes it.
    partial = entry.parent / f".{entry.name}.abc.partial"
    entry.rename(partial)
    (partial / "text_val_000000.bin").unlink()
    again = corpus(config)
    assert sorted(documents_of(again.train) + documents_of(again.val)) == sorted(DOCUMENTS)


def test_holdout_is_by_document_and_the_same_in_every_order(tmp_path: Path, text: Path) -> None:
    first = corpus(settings(text))
    train, val = documents_of(first.train), documents_of(first.val)
    assert len(val) == round(0.1 * len(DOCUMENTS))
    assert sorted(train + val) == sorted(DOCUMENTS)
    assert [document for document in DOCUMENTS if document in set(val)] == val
    assert first.val_text_bytes == first.val.decoded_bytes == sum(len(document.encode()) for document in val)
    assert documents_of(corpus(settings(text, cache=str(tmp_path / "other"))).val) == val
    (tmp_path / "reversed.txt").write_bytes("\0".join(reversed(DOCUMENTS)).encode())
    assert documents_of(corpus(settings(tmp_path / "reversed.txt")).val) == val[::-1]
    half = documents_of(corpus(settings(text, holdout=0.5)).val)
    assert len(half) == len(DOCUMENTS) // 2
    assert set(val) < set(half)


def test_copies_of_a_document_fall_on_one_side(tmp_path: Path) -> None:
    path = tmp_path / "copies.txt"
    path.write_bytes("\0".join([f"document {i}" for i in range(10)] * 5).encode())
    found = corpus(settings(path, holdout=0.3))
    assert len(documents_of(found.val)) == 15
    assert not set(documents_of(found.val)) & set(documents_of(found.train))


def test_holdout_of_few_documents(tmp_path: Path) -> None:
    path = tmp_path / "few.txt"
    path.write_bytes(b"one\0two")
    for share in (0.01, 0.99):
        found = corpus(settings(path, holdout=share))
        assert sorted(documents_of(found.train) + documents_of(found.val)) == ["one", "two"]
    path.write_bytes(b"only one\0only one")
    assert "only one document" in refusal(settings(path))
    assert documents_of(corpus(settings(path, val=str(path))).val) == ["only one"] * 2


def test_the_end_of_a_single_document_is_held_out(tmp_path: Path) -> None:
    path = tmp_path / "one.txt"
    text = "\n\n".join(f"Paragraph {number}, which says little." for number in range(200))
    path.write_text(text)
    found, again = corpus(settings(path)), corpus(settings(path))
    (train,), (val,) = documents_of(found.train), documents_of(found.val)
    assert train + val == text
    assert val.startswith("Paragraph 180,")
    assert found.is_end
    assert again.is_end, "also from the cache"
    assert found.overlap is not None
    path.write_text(text.replace("Paragraph 7,", "\0"))
    assert not corpus(settings(path)).is_end


@pytest.mark.slow
def test_stdlib_corpus() -> None:
    found = corpus(Data(tokenizer="bpe", vocab=1024))
    train, val = documents_of(found.train), documents_of(found.val)
    texts = [text for _, text in stdlib_documents()]
    assert sorted(train + val) == sorted(texts)
    assert len(val) == round(0.1 * len(texts))
    assert 0.05 < found.val_text_bytes / sum(len(text.encode()) for text in texts) < 0.2
    assert found.tokenizer.vocab_size == 1024
    assert len(found.train) < 0.5 * found.train.decoded_bytes
    assert found.overlap is not None
    assert 0 < found.overlap <= 0.01


def test_own_tokenizer_is_trained_on_the_training_documents_only(tmp_path: Path, text: Path) -> None:
    config = settings(text, tokenizer="bpe", vocab=500)
    found = corpus(config)
    assert found.tokenizer.serialize() == train_bpe(documents_of(found.train), 500).serialize()
    assert found.tokenizer.serialize() != train_bpe(DOCUMENTS, 500).serialize()
    other = tmp_path / "val.txt"
    other.write_text("Validation text has no say in the tokenizer. " * 50)
    with_val = corpus(settings(text, tokenizer="bpe", vocab=500, val=str(other)))
    assert with_val.tokenizer.serialize() == train_bpe(DOCUMENTS, 500).serialize()
    assert with_val.val.text() == other.read_bytes()


def test_text_is_read_once_and_again_when_it_changes(
    text: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reads: list[str] = []
    original = read_pieces

    def counted(path: str | Path, *rest: Any, **settings: Any) -> Iterator[str]:
        reads.append(str(path))
        return original(path, *rest, **settings)

    monkeypatch.setattr("jepamba.data.source.read_pieces", counted)
    config = settings(text, tokenizer="bpe", vocab=300)
    first = corpus(config)
    assert reads
    reads.clear()
    again = corpus(config)
    assert not reads
    assert again.train.text() == first.train.text()
    assert again.tokenizer.fingerprint == first.tokenizer.fingerprint
    for changed in (
        settings(text, tokenizer="bpe", vocab=301),
        settings(text, tokenizer="bpe", vocab=300, holdout=0.2),
        settings(text, tokenizer="bytes"),
    ):
        corpus(changed)
        assert reads
        reads.clear()
    status = text.stat()
    text.write_bytes(b"\0".join(f"new {i:02d}".encode() for i in range(20)))
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert corpus(config).train.text().startswith(b"new 0")
    os.utime(text, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    reads.clear()
    corpus(config)
    assert reads


@pytest.mark.parametrize("damage", ["shard", "meta", "tokenizer", "missing", "model"])
def test_a_damaged_cache_is_made_again(text: Path, damage: str) -> None:
    config = settings(text, tokenizer="bpe", vocab=300)
    before = corpus(config).train.text()
    (entry,) = (Path(config.cache) / "tokens").iterdir()
    (model,) = (Path(config.cache) / "tokenizers").iterdir()
    shard = entry / "text_train_000000.bin"
    {
        "shard": lambda: shard.write_bytes(shard.read_bytes()[:-2]),
        "meta": lambda: (entry / "meta.json").write_text("{"),
        "tokenizer": lambda: (entry / "tokenizer.model").write_bytes(b"x"),
        "missing": shard.unlink,
        "model": lambda: model.write_bytes(b"x"),
    }[damage]()
    assert corpus(config).train.text() == before


def test_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder("") == tmp_path / "jepamba"
    assert cache_folder("elsewhere") == Path("elsewhere")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_folder("") == Path.home() / ".cache" / "jepamba"


def test_the_cache_is_for_its_user_alone(text: Path, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.mkdir(mode=0o755)
    before = os.umask(0o022)
    try:
        corpus(settings(text, cache=str(mine / "new/cache"), tokenizer="bpe", vocab=264))
    finally:
        os.umask(before)
    made = [mine / "new", *(mine / "new/cache" / name for name in ("", "tokens", "tokenizers"))]
    assert {folder.stat().st_mode & 0o777 for folder in made} == {0o700}
    assert mine.stat().st_mode & 0o777 == 0o755, "only what jepamba makes"


@pytest.mark.parametrize("change", ["", "setting", "link", "owner"])
def test_an_open_cache_of_an_earlier_version_is_closed(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tokens = tmp_path / "jepamba" / "tokens"
    corpus(settings(text, cache=""))
    (tmp_path / "elsewhere").mkdir(mode=0o755)
    if change == "link":
        tokens.rename(tmp_path / "elsewhere" / "tokens")
        tokens.symlink_to(tmp_path / "elsewhere" / "tokens")
    if change == "owner":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file to another user")
        os.chown(next(tokens.iterdir()), 12345, -1)
    tokens.chmod(0o755)
    capsys.readouterr()
    for _ in range(2):
        corpus(settings(text, cache=str(tokens.parent) if change == "setting" else ""))
    assert tokens.stat().st_mode & 0o777 == (0o755 if change else 0o700)
    assert capsys.readouterr().err.count("others could read") == (not change)


def test_a_text_that_grows_while_it_is_read_is_refused(text: Path) -> None:
    source = Source((str(text),), "text", holdout=0.1)
    source.held_out()
    with text.open("ab") as file:
        file.write(b"\0one more")
    with pytest.raises(UserError, match=r"changed while it was read; start again$"):
        list(source.documents())


def test_a_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    text = tmp_path / "big.txt"
    text.write_text("the river answers\n" * 4000)
    words = ["data", "build", str(text), "--tokenizer", "bytes", "--out", str(tmp_path / "out" / "shards")]
    with Running(words, tmp_path / "log", setup="faulty:small_files") as running:
        assert running.wait() == [2]
        assert (
            running.last_words() == f"jepamba: {words[-1]}: cannot be written (File too large); choose another output"
        )
    assert list((tmp_path / "out").iterdir()) == []


def built(train: Path, out: Path, *flags: str) -> Path:
    """The folder `out` as `jepamba data build` makes it."""
    assert main(["data", "build", str(train), "--out", str(out), *flags]) == 0
    return out


def test_the_build_command_makes_what_corpus_sees(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    direct = corpus(settings(text, tokenizer="bpe", vocab=400))
    out = built(text, tmp_path / "out", "--vocab", "400")
    through = corpus(settings(out, tokenizer="bpe"))
    for a, b in ((direct.train, through.train), (direct.val, through.val)):
        assert np.array_equal(a.read(0, len(a)), b.read(0, len(b)))
    assert through.val_text_bytes == direct.val_text_bytes
    assert through.tokenizer.fingerprint == direct.tokenizer.fingerprint
    assert main(["data", "build", str(out), "--out", str(tmp_path / "more")]) == 2
    assert "these are shards already" in capsys.readouterr().err
    other = tmp_path / "val.txt"
    other.write_text("validation")
    both = open_folder(built(text, tmp_path / "both", "--tokenizer", "bytes", "--val", str(other)))
    assert both.splits["train"].documents == len(DOCUMENTS)
    assert both.tokens("val").text() == b"validation"


def test_the_build_command_divides_all_its_paths_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Every document of `first` has a near-duplicate in `second`.
    texts = DOCUMENTS[:20]
    first, second = tmp_path / "first.txt", tmp_path / "second.txt"
    first.write_bytes("\0".join(texts).encode())
    second.write_bytes("\0".join(f"Once more. {text}" for text in texts).encode())
    out = tmp_path / "out"
    assert main(["data", "build", str(first), str(second), "--out", str(out), "--tokenizer", "bytes"]) == 0
    folder = open_folder(out)
    held = {document.removeprefix("Once more. ") for document in documents_of(folder.tokens("val"))}
    assert held
    assert not held & {document.removeprefix("Once more. ") for document in documents_of(folder.tokens("train"))}
    overlap = folder.splits["val"].overlap
    assert overlap is not None
    assert overlap <= 0.01
    assert f"val: held out, {overlap:.2%} of their 50-byte strings are in the training text" in capsys.readouterr().out
    assert folder.splits["train"].overlap is None
    assert corpus(settings(out)).overlap == overlap
    assert corpus(settings(out, val=str(first))).overlap is None


def test_shards_and_tokenizers_that_do_not_fit_are_refused(tmp_path: Path, text: Path) -> None:
    pieces = built(text, tmp_path / "pieces", "--vocab", "400")
    plain = built(text, tmp_path / "plain", "--tokenizer", "bytes")
    model, other = tmp_path / "own.model", tmp_path / "other.model"
    shutil.copy(pieces / "tokenizer.model", model)
    other.write_bytes(train_bpe(DOCUMENTS, 300).serialize())
    assert corpus(settings(pieces, tokenizer=str(model))).tokenizer.vocab_size == 400
    assert f"{pieces}: its shards were made with a SentencePiece model of 400" in refusal(settings(pieces))
    assert "other.model" in refusal(settings(pieces, tokenizer=str(other)))
    assert f"{plain}: its shards were made with bytes" in refusal(settings(plain, tokenizer="bpe"))
    assert "not with data.byte_separator" in refusal(settings(plain, byte_separator="no"))
    assert f"{pieces}: its shards were made with" in refusal(settings(text, val=str(pieces)))
    assert "gone.model" in refusal(settings(text, tokenizer=str(tmp_path / "gone.model")))
    assert "no such file" in refusal(settings(tmp_path / "gone"))
    assert documents_of(corpus(settings(plain, val=str(text))).val) == DOCUMENTS


def published(folder: Path, split: str, streams: list[list[int]]) -> Path:
    folder.mkdir(exist_ok=True)
    for index, stream in enumerate(streams):
        write_shard(folder / f"fineweb_{split}_{index:06d}.bin", np.array(stream))
    return folder


def test_published_shards_of_pieces(tmp_path: Path) -> None:
    tokenizer = train_bpe(DOCUMENTS, 400)
    (tmp_path / "own.model").write_bytes(tokenizer.serialize())
    ids = [[1, *tokenizer.encode(text).tolist()] for text in DOCUMENTS[:4]]
    folder = published(tmp_path / "shards", "train", ids[:3])
    published(folder, "val", ids[3:])
    found = corpus(settings(folder, tokenizer=str(tmp_path / "own.model")))
    assert documents_of(found.train) == DOCUMENTS[:3]
    assert documents_of(found.val) == DOCUMENTS[3:4]
    assert found.val.text_bytes is None
    assert found.val_text_bytes == len(DOCUMENTS[3].encode())
    assert "do not name their tokenizer" in refusal(settings(folder, tokenizer="bpe"))
    assert "but the tokenizer has 256 symbols" in refusal(settings(folder))
    (tmp_path / "small.model").write_bytes(train_bpe(DOCUMENTS, 300).serialize())
    assert "but the tokenizer has 300 symbols" in refusal(settings(folder, tokenizer=str(tmp_path / "small.model")))
    (folder / "fineweb_val_000000.bin").unlink()
    assert "no *_val_*.bin shard" in refusal(settings(folder, tokenizer=str(tmp_path / "own.model")))
    single = settings(folder / "fineweb_train_000000.bin", tokenizer=str(tmp_path / "own.model"))
    assert documents_of(corpus(single).val) == DOCUMENTS[:1]


def test_published_byte_shards_are_scored_as_they_are(tmp_path: Path, text: Path) -> None:
    folder = published(tmp_path / "shards", "train", [[0, 65, 0, 66]])
    published(folder, "val", [[67, 0, 68]])
    for separator, bos, size in (("auto", None, 3), ("no", None, 3), ("yes", 0, 2)):
        found = corpus(settings(folder, byte_separator=separator))
        assert found.train.bos_id == found.val.bos_id == bos
        assert found.val_text_bytes == size
    mixed = corpus(settings(text, val=str(folder)))
    assert (mixed.train.bos_id, mixed.val.bos_id, mixed.val_text_bytes) == (0, None, 3)


def test_load_tokens_for_an_evaluation(tmp_path: Path, text: Path) -> None:
    for tokenizer in tokenizers():
        tokens = load_tokens(text, tokenizer, settings(text))
        assert documents_of(tokens) == DOCUMENTS
        assert tokens.text_bytes == sum(len(document.encode()) for document in DOCUMENTS)
        folder = build(DOCUMENTS[:5], tokenizer, tmp_path / tokenizer.kind, "val")
        assert documents_of(load_tokens(folder.path, tokenizer, settings(text))) == DOCUMENTS[:5]
        (shard,) = folder.path.glob("*.bin")
        assert documents_of(load_tokens(shard, tokenizer, settings(text))) == DOCUMENTS[:5]
    with pytest.raises(UserError, match="not with bytes"):
        load_tokens(tmp_path / "sentencepiece", ByteTokenizer(), settings(text))
    with pytest.raises(UserError, match="no 'train' split; its splits are val"):
        load_tokens(tmp_path / "bytes", ByteTokenizer(), settings(text), "train")


COUNTS = {"documents": 1, "text_bytes": 1, "decoded_bytes": 1, "tokens": 1, "shards": []}


@pytest.mark.parametrize(
    "change",
    [
        {"splits": None},
        {"splits": {"train": {}}},
        {"splits": {"train": {"documents": 1, "text_bytes": 1, "decoded_bytes": 1, "tokens": -1, "shards": []}}},
        {"splits": {"train": {"documents": 1, "text_bytes": 1, "decoded_bytes": 1, "tokens": "1", "shards": []}}},
        {"splits": {"train": {"documents": 1, "text_bytes": 1, "decoded_bytes": 1, "tokens": 1, "shards": ["../a"]}}},
        {"splits": {"train": {"documents": 1, "text_bytes": 1, "decoded_bytes": 1, "tokens": 1, "shards": [7]}}},
        {"splits": {"val": COUNTS | {"overlap": 1.5}}},
        *(
            {"splits": {"val": COUNTS | {"unrestored": unrestored}}}
            for unrestored in (7, {"bytes": -1}, {"bytes": "1"}, {"bits": 1}, {"bytes": 1, "example": "\x1b[2J"})
        ),
        {"tokenizer": {"kind": "words", "fingerprint": "x"}},
        {"tokenizer": {"kind": "bytes"}},
        {"tokenizer": {"kind": "bytes", "fingerprint": "0" * 64}},
        {"tokenizer": []},
    ],
)
def test_a_damaged_description_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    out = build(["one"], ByteTokenizer(), tmp_path / "out").path
    meta = json.loads((out / "meta.json").read_text())
    (out / "meta.json").write_text(json.dumps(meta | change))
    with pytest.raises(UserError, match=r"build the folder again"):
        open_folder(out)


def test_a_folder_that_lost_something_is_refused(tmp_path: Path) -> None:
    out = build(DOCUMENTS, ByteTokenizer(), tmp_path / "out", shard_tokens=100_000).path
    shards = sorted(out.glob("*.bin"))
    whole = shards[1].read_bytes()
    shards[1].unlink()
    with pytest.raises(UserError, match=shards[1].name):
        open_folder(out).tokens("train")
    write_shard(shards[1], np.array([1, 2]))
    with pytest.raises(UserError, match=r"its shards have"):
        open_folder(out).tokens("train")
    shards[1].write_bytes(whole)
    open_folder(out).tokens("train")
    (out / "tokenizer.bytes").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.bytes"):
        open_folder(out)
    with pytest.raises(UserError, match=r"meta\.json: cannot read"):
        open_folder(tmp_path)
    (tmp_path / "meta.json").write_text('{"name": "not ours"}')
    assert not is_folder(tmp_path)
    with pytest.raises(UserError, match="not the description"):
        open_folder(tmp_path)


def test_text_folders_are_not_taken_for_shards(tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text('["someone else\'s"]')
    (tmp_path / "a.txt").write_text("text")
    assert not is_shards(tmp_path)
    assert not is_shards(tmp_path / "a.txt")
    assert not is_shards("stdlib")
    (tmp_path / "b.txt").write_text("text")
    a, b = (Source((str(tmp_path / name),), "text").identity() for name in ("a.txt", "b.txt"))
    assert a != b


@pytest.mark.skipif(not CORPUS.exists(), reason="the shared corpus is not beside the project")
def test_shared_validation_text_has_the_documented_tokens() -> None:
    tokenizer = read_tokenizer(CORPUS / "sp8192.model")
    tokens = load_tokens(CORPUS / "val.txt.xz", tokenizer, Data())
    assert len(tokens) == 1_667_758
    assert tokens.text_bytes == 6_106_876
    # This model turns each empty line into one space: what it scores is a little less than the text.
    assert tokens.decoded_bytes == len(tokens.text()) == 6_084_220


def test_validation_files_among_the_training_files_are_found(tmp_path: Path) -> None:
    """A figure of text that was trained on is too good, whatever the two paths look like."""
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "val.txt"):
        (tmp_path / "text" / name).write_text(f"{name}: some text")
    (tmp_path / "other.txt").write_text("some other text")
    (tmp_path / "link.txt").symlink_to(tmp_path / "text" / "val.txt")
    inside = str(tmp_path / "text" / "val.txt")
    link = str(tmp_path / "link.txt")
    for val, found in ((inside, [inside]), (link, [link]), (str(tmp_path / "other.txt"), [])):
        assert trained_on(settings(tmp_path / "text", val=val)) == found
    assert trained_on(settings("stdlib", val="stdlib")) == ["stdlib"]
    assert trained_on(settings(tmp_path / "text")) == []


def test_a_build_says_that_its_validation_text_is_training_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The shards record it, so that a training on them says it too. Links are the same file, copies are not."""
    (tmp_path / "text").mkdir()
    for name in ("a.txt", "b.txt"):
        (tmp_path / "text" / name).write_text(f"{name}: some text")
    os.link(tmp_path / "text/a.txt", tmp_path / "hard.txt")
    both = [str(tmp_path / "text/a.txt"), str(tmp_path / "text/b.txt")]
    words = ["--out", str(tmp_path / "shards"), "--tokenizer", "bytes"]
    for val, share in ((both[0], 1.0), (str(tmp_path / "hard.txt"), 1.0), (str(tmp_path / "text"), 0.5)):
        assert main(["data", "build", both[0], "--val", val, *words]) == 0
        assert "1 files of the validation text are in the training text too" in capsys.readouterr().err
        assert open_folder(tmp_path / "shards").splits["val"].overlap == share
        shutil.rmtree(tmp_path / "shards")
    assert main(["data", "build", both[0], "--val", both[1], *words]) == 0
    assert "too good" not in capsys.readouterr().err
    assert open_folder(tmp_path / "shards").splits["val"].overlap is None
    shard = str(tmp_path / "shards/text_train_000000.bin")
    assert trained_on(settings(tmp_path / "shards", val=shard)) == [shard]
    assert trained_on(settings(tmp_path / "shards", val=str(tmp_path / "shards"))) == []
