"""Tests of tokenizers: lossless round trips, and the exact byte count of every token."""

from __future__ import annotations

import functools
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.errors import UserError
from jepamba.text import (
    ByteTokenizer,
    SentencePieceTokenizer,
    Tokenizer,
    load_tokenizer,
    read_tokenizer,
    train_bpe,
)
from jepamba.text import bpe as bpe_module
from tiny import TOPICS

PUBLISHED = Path(__file__).resolve().parents[2] / "shared" / "corpus" / "sp8192.model"
needs_published = pytest.mark.skipif(not PUBLISHED.exists(), reason="the published tokenizer is not beside the project")

ODD = [
    "",
    " ",
    "  two leading spaces,  two inside, two behind  ",
    "\n\n\tindented\n    four\r\n",
    "é☃😀 naïve 漢字",
    "▁ itself▁, ▁▁twice",
    " ▁",
    "▁a",
    "<s>no control</s><0x0A><pad><unk>",
    "x" * 300,
    "e\u0301 ﬁ \u00a0 \u200b \ufeff",
]

texts = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60) | st.text(
    alphabet="ab T\n\t▁ é1.", max_size=60
)


def lossless(tokenizer: Tokenizer, text: str) -> bool:
    """Whether decoding the ids of `text` gives `text`."""
    return tokenizer.decode(tokenizer.encode(text), previous=tokenizer.bos_id) == text.encode()


@functools.cache
def trained(vocab: int = 600) -> SentencePieceTokenizer:
    return train_bpe(TOPICS, vocab)


@functools.cache
def with_prefix(**changes: object) -> SentencePieceTokenizer:
    """Train a model with SentencePiece's default dummy prefix and normaliser, unless overridden."""
    model = io.BytesIO()
    settings: dict[str, object] = {
        "model_type": "bpe",
        "vocab_size": 400,
        "byte_fallback": True,
        "pad_id": 0,
        "bos_id": 1,
        "eos_id": 2,
        "unk_id": 3,
        "minloglevel": 3,
        "hard_vocab_limit": False,
    }
    lines = [line for text in TOPICS[:20] for line in text.splitlines() if line]
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines), model_writer=model, **(settings | changes))
    return SentencePieceTokenizer(model.getvalue())


def unigram() -> SentencePieceTokenizer:
    return with_prefix(model_type="unigram", user_defined_symbols="<tag>,\n")


@functools.cache
def all_kinds() -> list[Tokenizer]:
    kinds: list[Tokenizer] = [ByteTokenizer(), ByteTokenizer(separator=False), trained(), with_prefix()]
    kinds.append(with_prefix(normalization_rule_name="identity", remove_extra_whitespaces=False))
    kinds.append(with_prefix(byte_fallback=False))
    kinds.append(unigram())
    return kinds + ([read_tokenizer(PUBLISHED)] if PUBLISHED.exists() else [])


def document(tokenizer: Tokenizer, text: str) -> np.ndarray:
    return np.concatenate([[tokenizer.bos_id], tokenizer.encode(text)]).astype(np.uint16)


@pytest.mark.parametrize("text", ODD)
def test_every_text_round_trips(text: str) -> None:
    for tokenizer in (ByteTokenizer(), trained(), trained(300)):
        assert tokenizer.decode(document(tokenizer, text)) == text.encode()
        assert lossless(tokenizer, text)


@settings(max_examples=examples(300), deadline=None)
@given(texts)
def test_random_text_round_trips(text: str) -> None:
    for tokenizer in (ByteTokenizer(), trained()):
        assert tokenizer.decode(document(tokenizer, text)) == text.encode()
        # Only a leading space needs its BOS: without one it looks like the middle of a document.
        if not text.startswith(" "):
            assert tokenizer.decode(tokenizer.encode(text)) == text.encode()


@settings(max_examples=examples(80), deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_bytes_of_targets_are_the_decoded_text_in_every_slice(documents: list[str], data: st.DataObject) -> None:
    for tokenizer in all_kinds():
        stream = np.concatenate([document(tokenizer, text) for text in documents])
        start = data.draw(st.integers(0, len(stream) - 1))
        stop = data.draw(st.integers(start + 1, len(stream)))
        targets = stream[start + 1 : stop]
        counted = tokenizer.target_bytes(stream[start : stop - 1], targets)
        assert counted.sum() == len(tokenizer.decode(targets, previous=int(stream[start])))
        # The pieces of a stream, each with the token before it, make up the whole.
        head = tokenizer.decode(stream[: start + 1])
        middle = tokenizer.decode(targets, previous=int(stream[start]))
        tail = tokenizer.decode(stream[stop:], previous=int(stream[stop - 1]))
        assert head + middle + tail == tokenizer.decode(stream)


@settings(max_examples=examples(60), deadline=None)
@given(st.data())
def test_any_ids_decode_to_the_bytes_that_are_counted(data: st.DataObject) -> None:
    for tokenizer in all_kinds():
        ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), min_size=2, max_size=20))
        each = tokenizer.target_bytes(ids[:-1], ids[1:])
        assert each.shape == (len(ids) - 1,)
        assert [len(tokenizer.decode([b], previous=a)) for a, b in itertools.pairwise(ids)] == each.tolist()


def test_a_slice_without_its_previous_token_is_the_middle_of_a_document() -> None:
    tokenizer = trained()
    ids = document(tokenizer, "one two three")
    cut = next(i for i in range(2, len(ids)) if tokenizer.decode(ids[i : i + 1]).startswith(b" "))
    assert tokenizer.decode(ids[:cut]) + tokenizer.decode(ids[cut:]) == b"one two three"


def test_byte_mode_separator() -> None:
    with_separator, without = ByteTokenizer(), ByteTokenizer(separator=False)
    ids = [0, 65, 0, 66]
    assert with_separator.target_bytes([0, *ids[:-1]], ids).tolist() == [0, 1, 0, 1]
    assert without.target_bytes([0, *ids[:-1]], ids).tolist() == [1, 1, 1, 1]
    assert with_separator.decode(ids) == b"AB"
    assert without.decode(ids) == b"\0A\0B"
    assert with_separator.control_ids == {0}
    assert without.control_ids == frozenset()
    with pytest.raises(UserError, match="NUL"):
        with_separator.encode("a\0b")
    assert without.encode("a\0b").tolist() == [97, 0, 98]


def test_leading_space_counts_nothing_after_a_control_token() -> None:
    tokenizer = with_prefix(normalization_rule_name="identity", remove_extra_whitespaces=False)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize())
    the = processor.piece_to_id("▁the")
    for control in (tokenizer.bos_id, processor.eos_id(), processor.pad_id()):
        assert tokenizer.target_bytes([control], [the]).tolist() == [3]
        assert tokenizer.decode([control, the]) == b"the"
    assert tokenizer.target_bytes([the], [the]).tolist() == [4]
    assert tokenizer.target_bytes([the], [tokenizer.bos_id]).tolist() == [0]
    newline = processor.piece_to_id("<0x0A>")
    assert tokenizer.target_bytes([the, newline], [newline, the]).tolist() == [1, 4]


def test_target_bytes_keeps_the_shape_of_batches() -> None:
    tokenizer = trained()
    ids = document(tokenizer, "a text that fills a few rows of a batch, and more").astype(np.int64)
    previous, targets = ids[:12].reshape(3, 4), ids[1:13].reshape(3, 4)
    assert tokenizer.target_bytes(previous, targets).shape == (3, 4)


@pytest.mark.parametrize("wrong", [-1, 65535])
def test_ids_outside_the_vocabulary_are_refused(wrong: int) -> None:
    for tokenizer in (ByteTokenizer(), trained()):
        with pytest.raises(ValueError, match="vocabulary"):
            tokenizer.decode([1, wrong])
        with pytest.raises(ValueError, match="vocabulary"):
            tokenizer.target_bytes([1], [wrong])


def test_half_a_surrogate_pair_is_refused() -> None:
    for tokenizer in (ByteTokenizer(), trained()):
        with pytest.raises(UserError, match=r"U\+D83D"):
            tokenizer.encode("a\ud83d")


def test_long_texts_are_encoded_in_parts_to_the_same_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "\n\n".join(TOPICS[:60])
    scripts = "слово и дело, λόγος και έργο ½ ² ﬁn ﷺ ͺ ͺx यह एक כל مرحبا بالعالم ｆｕｌｌ　 width  two_ _x 1 2 " * 200
    text += scripts
    for tokenizer in all_kinds():
        if not isinstance(tokenizer, SentencePieceTokenizer):
            continue
        whole = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize()).encode(text)
        monkeypatch.setattr(tokenizer, "cut_chars", 50)
        assert len(list(tokenizer._parts(text))) > 1000
        assert max(len(part) for _, part in tokenizer._parts(scripts)) < 150
        ids = tokenizer.encode(text).tolist()
        # A unigram model chooses by sums of scores, whose rounding depends on what precedes: ties may fall elsewhere.
        assert sum(a != b for a, b in zip(ids, whole, strict=True)) <= (
            len(ids) / 1000 if tokenizer is unigram() else 0
        )
        assert tokenizer.decode(ids) == tokenizer.decode(whole)


def test_a_batch_is_its_texts_one_by_one() -> None:
    for tokenizer in all_kinds():
        batch = [text for text in ODD if text]
        for text, ids in zip(batch, tokenizer.encode_batch(batch), strict=True):
            assert ids.dtype == np.uint16
            assert ids.tolist() == tokenizer.encode(text).tolist()
        assert tokenizer.encode_batch([]) == []


def test_serialized_tokenizers_are_restored() -> None:
    for tokenizer in all_kinds():
        again = load_tokenizer(tokenizer.kind, tokenizer.serialize())
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.vocab_size, again.bos_id, again.separator) == (
            tokenizer.vocab_size,
            tokenizer.bos_id,
            tokenizer.separator,
        )
        assert again.control_ids == tokenizer.control_ids
    assert len({tokenizer.fingerprint for tokenizer in all_kinds()}) == len(all_kinds())
    assert not load_tokenizer("bytes", b"", separator=False).separator


@pytest.mark.parametrize("blob", [b"", b"abc", bytes(range(256)) * 8])
def test_bad_blobs_are_refused(blob: bytes, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="SentencePiece model"):
        load_tokenizer("sentencepiece", blob)
    if blob:
        with pytest.raises(UserError, match="damaged"):
            load_tokenizer("bytes", blob)
    assert capfd.readouterr() == ("", "")


def test_every_truncation_is_refused_or_a_smaller_model() -> None:
    """A truncated model file raises `UserError`, or loads as a smaller model if the cut is between two pieces."""
    blob = trained().serialize()
    refused = []
    for stop in range(0, len(blob), 97):
        try:
            SentencePieceTokenizer(blob[:stop])
        except UserError as error:
            refused.append(str(error))
    assert all("SentencePiece model" in line and "\n" not in line for line in refused)
    assert len(refused) > 20


def test_damaged_bytes_are_refused_or_another_model() -> None:
    """Changed bytes give another model, no model, or a model whose pieces are not text."""
    blob, random, errors = trained(300).serialize(), np.random.default_rng(0), set()
    for _ in range(600):
        damaged = np.frombuffer(blob, dtype=np.uint8).copy()
        damaged[random.integers(len(blob), size=2)] = random.integers(256, size=2)
        try:
            SentencePieceTokenizer(damaged.tobytes())
        except UserError as error:
            errors.add(str(error))
    assert not any("\n" in line for line in errors)
    assert any("not a SentencePiece model, or damaged" in line for line in errors)
    assert any("a piece that is not UTF-8" in line for line in errors)


def test_unknown_kind_and_missing_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown kind"):
        load_tokenizer("words", b"")
    with pytest.raises(UserError, match=r"none\.model"):
        read_tokenizer(tmp_path / "none.model")
    (tmp_path / "bad.model").write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"bad\.model.*damaged"):
        read_tokenizer(tmp_path / "bad.model")


def test_a_model_without_bos_or_with_suffixes_is_refused() -> None:
    with pytest.raises(UserError, match="BOS"):
        with_prefix(bos_id=-1)
    with pytest.raises(UserError, match="suffix"):
        with_prefix(treat_whitespace_as_suffix=True)


def test_trained_ids_and_size() -> None:
    tokenizer = trained()
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize())
    assert [processor.id_to_piece(i) for i in range(5)] == ["<pad>", "<s>", "</s>", "<unk>", "<0x00>"]
    assert tokenizer.bos_id == 1
    assert tokenizer.control_ids == {0, 1, 2, 3}
    assert tokenizer.vocab_size == 600
    text = TOPICS[0]
    assert len(tokenizer.encode(text)) < 0.6 * len(text.encode())


def test_training_is_deterministic_and_ignores_order(capfd: pytest.CaptureFixture[str]) -> None:
    documents = TOPICS
    first = train_bpe(iter(documents), 500)
    assert train_bpe(documents, 500).serialize() == first.serialize()
    assert train_bpe(reversed(documents), 500).serialize() == first.serialize()
    assert capfd.readouterr() == ("", "")


def test_training_reads_a_bounded_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    documents = TOPICS
    monkeypatch.setattr(bpe_module, "SAMPLE_BYTES", 50_000)
    sample = bpe_module._sample(bpe_module._chunks(documents), 50_000)
    assert 50_000 <= sum(len(chunk.encode()) for chunk in sample) < 50_000 + 4 * bpe_module.CHUNK_CHARS
    # A sample of everything, not its beginning.
    beginning = "".join(documents)[:200_000]
    assert sum(chunk in beginning for chunk in sample) < 0.5 * len(sample)
    assert lossless(train_bpe(documents, 400), documents[3])


@pytest.mark.parametrize(
    "text", ["a", "ab ab", " ", "\n", "▁", "▅", "漢" * 50, "".join(map(chr, range(0x4E00, 0x9000)))]
)
def test_training_on_odd_text(text: str) -> None:
    """Little text, no spaces, or more characters than pieces still give a lossless tokenizer."""
    for vocab in (264, 1000):
        tokenizer = train_bpe([text], vocab)
        assert tokenizer.vocab_size <= vocab
        for sample in (text[:500], "a b", "  c\n", "▁", "▅"):
            assert lossless(tokenizer, sample)


@pytest.mark.parametrize(
    "character", [*"▁▅▄⁇\0\t\r\ufeff\ufffd\ufffe\x85\u2028\u200b\U0010ffff", "<unk>", "<s>", "<0x41>"]
)
def test_no_character_empties_the_tokenizer(character: str) -> None:
    """SentencePiece ignores every sentence with "▅" (U+2585) in it, so the text is cut there."""
    log = "\n".join(f"job {i:03} load {character} cpu busy with the kettle, answer {i * 7 % 97}" for i in range(400))
    tokenizer = train_bpe([log], 400)
    assert tokenizer.vocab_size > 350
    assert len(tokenizer.encode(log)) < 0.45 * len(log.encode())
    assert lossless(tokenizer, log)


def test_training_on_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no text"):
        train_bpe([], 1000)
    with pytest.raises(UserError, match="pieces"):
        train_bpe(["a"], 100)


@needs_published
def test_published_model_as_its_library_encodes() -> None:
    tokenizer = read_tokenizer(PUBLISHED)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(PUBLISHED))
    assert (tokenizer.vocab_size, tokenizer.bos_id) == (8192, 1)
    for text in [*ODD, *TOPICS[:30]]:
        ids = processor.encode(text)
        assert tokenizer.encode(text).tolist() == ids
        assert tokenizer.decode([1, *ids]).decode() == processor.decode(ids)
    assert lossless(tokenizer, "plain words")
    assert not lossless(tokenizer, "two  spaces")


@pytest.mark.parametrize("piece_chars", [1, 40, 1 << 20])
def test_the_pieces_of_a_long_text_have_its_ids(piece_chars: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("byte_level", "pieces"):
        monkeypatch.setattr(f"jepamba.text.{module}.PIECE_CHARS", piece_chars)
    trained = train_bpe(["the river answers the stone, ☃ " * 40, "1 2 3"], 400)
    monkeypatch.setattr(trained, "cut_chars", 20)
    tokenizers: list[Tokenizer] = [ByteTokenizer(), trained]
    for text in (" the river answers" * 30, "a", "▁▁the ▁river▁ " * 9, "☃" * 50, "no cut" * 2, " "):
        for tokenizer in tokenizers:
            for size in (1, 7, 50, 1 << 20):  # of the parts in which the text comes
                parts = [text[at : at + size] for at in range(0, len(text), size)]
                pieces = list(tokenizer.encode_pieces(parts))
                assert "".join(piece for piece, _ in pieces) == text
                assert np.array_equal(np.concatenate([ids for _, ids in pieces]), tokenizer.encode(text))
    assert len(list(trained.encode_pieces([" the river answers" * 30]))) > 5 or piece_chars > 40
