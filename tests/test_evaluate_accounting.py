"""Exact bytes: what is counted is what decodes, for every kind of tokenizer and any text, or the piece is named."""

from __future__ import annotations

import functools
import io
import itertools
import math
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.config import Data, Model, Quant
from jepamba.data import Tokens, build, load_tokens, open_folder, write_shard
from jepamba.errors import UserError
from jepamba.evaluate import (
    Score,
    counted_bytes,
    score_carried,
    score_plain,
    score_plain_at,
    score_sliding,
    text_bytes,
)
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, read_tokenizer, train_bpe
from tiny import TOPICS

CORPUS = Path(__file__).resolve().parents[2] / "shared" / "corpus"
IDENTITY = {"normalization_rule_name": "identity", "remove_extra_whitespaces": False}

KINDS: dict[str, dict[str, Any]] = {
    "prefix, nfkc, fallback": {},
    "prefix, nfkc, no fallback": {"byte_fallback": False},
    "prefix, identity": IDENTITY,
    "no prefix, identity": {**IDENTITY, "add_dummy_prefix": False},
    "no prefix, nfkc": {"add_dummy_prefix": False},
    "characters": {"model_type": "char", "byte_fallback": False, "vocab_size": 120},
    "unigram, own symbols": {
        "model_type": "unigram",
        "user_defined_symbols": ["<tag>", "\n", "\t", "▁▁x", "é"],
        "control_symbols": ["<sep>", "<mask>"],
    },
    "own symbols, identity": {**IDENTITY, "user_defined_symbols": ["▁", "the", " of", "<0x0a>"]},
}
"""Settings of SentencePiece models that are trained here, by what sets them apart."""
EVERY = [*KINDS, "ours", "bytes", "published bytes"]

letters = st.characters(exclude_categories=["Cs"], exclude_characters="\0")
texts = (
    st.text(alphabet=letters, min_size=1, max_size=40)
    | st.text(alphabet="ab T\n\t▁ é1.漢ﬁ", min_size=1, max_size=40)
    | st.lists(st.sampled_from(["the", " of", "<tag>", "<s>", "<sep>", "<0x0A>", "▁▁x", "  ", "😀"]), min_size=1).map(
        "".join
    )
)


@functools.cache
def lines() -> list[str]:
    return [line for text in TOPICS[:12] for line in text.splitlines() if line]


@functools.cache
def tokenizer_of(kind: str) -> Tokenizer:
    if kind in KINDS:
        return trained(**KINDS[kind])
    return train_bpe(lines(), 400) if kind == "ours" else ByteTokenizer(separator=kind == "bytes")


def trained(**changes: Any) -> SentencePieceTokenizer:
    model = io.BytesIO()
    common: dict[str, Any] = {"model_type": "bpe", "vocab_size": 400, "byte_fallback": True, "hard_vocab_limit": False}
    common |= {"pad_id": 0, "bos_id": 1, "eos_id": 2, "unk_id": 3, "minloglevel": 3}
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines()), model_writer=model, **(common | changes))
    return SentencePieceTokenizer(model.getvalue())


def naive(tokenizer: Tokenizer, ids: Sequence[int], previous: int) -> bytes:
    """The text of `ids` after `previous`, straight from the rule of the specification and the library's own tables."""
    if isinstance(tokenizer, ByteTokenizer):
        return bytes(i for i in ids if i or not tokenizer.separator)
    model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize())
    text = b""
    for before, i in itertools.pairwise([previous, *ids]):
        if model.is_control(i) or model.is_unknown(i) or model.is_unused(i):
            continue
        if model.is_byte(i):
            text += bytes([int(model.id_to_piece(i)[3:5], 16)])
            continue
        piece = model.id_to_piece(i)
        if model.is_control(before) or model.is_unknown(before) or model.is_unused(before):
            piece = piece.removeprefix("▁")
        text += piece.replace("▁", " ").encode()
    return text


def stream(documents: Sequence[str], tokenizer: Tokenizer) -> Tokens:
    """Documents on their way through a folder of shards, as every text that is scored."""
    with tempfile.TemporaryDirectory() as folder:
        tokens = build(documents, tokenizer, Path(folder) / "out").tokens("train")
        ids = tokens.read(0, len(tokens)).copy()
    return Tokens([ids], tokenizer, tokens.text_bytes, tokens.recorded_bytes, tokens.unrestored)


@functools.cache
def tiny(vocab: int) -> LanguageModel:
    torch.manual_seed(0)
    config = Model(vocab_size=vocab, embed_dim=4, d_model=8, n_layer=1, d_state=4, headdim=8, mlp_mult=1.0)
    return LanguageModel(config, Quant())


def every_score(tokens: Tokens, limit: int) -> list[Score]:
    model, common = tiny(tokens.tokenizer.vocab_size), {"limit": limit, "tokens_per_batch": 64}
    return [
        score_plain(model, tokens, 8, **common),
        score_sliding(model, tokens, 8, stride=3, **common),
        score_carried(model, tokens, 8, **common),
        score_carried(model, tokens, 8, reset=False, **common),
        *score_plain_at(model, tokens, 8, (0.8, 1.2), **common),
    ]


@pytest.mark.parametrize("kind", EVERY)
@settings(max_examples=examples(25), deadline=None)
@given(st.lists(texts, min_size=1, max_size=4), st.data())
def test_counted_bytes_are_the_decoded_text(kind: str, documents: list[str], data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = stream(documents, tokenizer)
    ids = tokens.read(0, len(tokens)).tolist()
    original = sum(len(text.encode()) for text in documents)
    assert tokens.text_bytes == original
    assert tokens.unrestored is not None
    assert (tokens.unrestored.bytes == 0) == (tokens.text() == "".join(documents).encode())
    if len(ids) < 2:
        return
    targets = data.draw(st.integers(1, len(ids) - 1))
    text = naive(tokenizer, ids[1 : targets + 1], ids[0])
    assert counted_bytes(tokens, targets) == len(text)
    assert tokenizer.decode(ids[1 : targets + 1], previous=ids[0]) == text
    if kind in ("ours", "bytes", "published bytes", "no prefix, identity"):
        # These give every text back: the targets are the original text, up to the first byte where nothing precedes it.
        first = 1 if kind == "published bytes" else 0
        assert naive(tokenizer, ids[1:], ids[0]) == "".join(documents).encode()[first:]
        if text:
            assert text_bytes(tokens, targets) == (len(text), len(text), "original")
    elif naive(tokenizer, ids[1:], ids[0]):
        assert text_bytes(tokens, len(ids) - 1)[0::2] == (original, "original")


@settings(max_examples=40, deadline=None)
@given(texts)
def test_decoded_text_is_the_library_s(text: str) -> None:
    """A document as the library itself would give it back, for the models that the library treats alike."""
    for kind in KINDS:
        tokenizer = tokenizer_of(kind)
        model = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.serialize())
        # In the middle of a text, so that how many spaces the library drops at its start does not matter.
        ids = model.encode("so" + text)
        # Unknown text counts nothing; the library writes " ⁇ ".
        if model.unk_id() in ids:
            continue
        assert tokenizer.decode(ids, previous=tokenizer.bos_id).decode() == model.decode(ids)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(EVERY), st.lists(texts, min_size=2, max_size=3), st.data())
def test_every_evaluation_divides_by_exact_bytes(kind: str, documents: list[str], data: st.DataObject) -> None:
    tokenizer = tokenizer_of(kind)
    tokens = stream(["so", *documents], tokenizer)
    ids = tokens.read(0, len(tokens)).tolist()
    original, whole = 2 + sum(len(text.encode()) for text in documents), tokens.recorded_bytes
    assert whole is not None
    limit = data.draw(st.integers(3, len(ids) - 1))
    for score in [*every_score(tokens, 0), *every_score(tokens, limit)]:
        decoded = len(naive(tokenizer, ids[1 : score.tokens + 1], ids[0]))
        assert score.tokens in (limit, len(ids) - 1)
        assert score.decoded_bytes == decoded
        scaled = round(decoded * original / whole)
        assert score.bytes == (min(scaled, decoded) if score.counted == "scaled" else scaled)
        assert (score.counted == "scaled") == (original != whole != decoded)
        bits = score.nats_per_token * score.tokens / math.log(2)
        assert score.bpb * score.bytes == pytest.approx(bits)
        assert score.bpb_decoded * decoded == pytest.approx(bits)
        if tokenizer.separator and score.tokens == len(ids) - 1:
            assert (score.bytes, score.counted) == (original, "original")


def test_a_text_that_its_tokenizer_changes_is_scored_by_its_original_bytes() -> None:
    tokenizer = tokenizer_of("prefix, nfkc, fallback")
    # Newlines and runs of spaces become one space, a ligature two letters, a wide letter a narrow one.
    documents = ["two  spaces\n\n\nand lines", "ﬁne", "ＷＩＤＥ"]
    tokens = stream(documents, tokenizer)
    decoded = b"two spaces and linesfineWIDE"
    assert tokens.text() == decoded
    score = score_plain(tiny(tokenizer.vocab_size), tokens, 8)
    assert (score.bytes, score.decoded_bytes, score.counted) == (23 + 5 + 12, len(decoded), "original")
    part = score_plain(tiny(tokenizer.vocab_size), tokens, 8, limit=5)
    assert part.counted == "scaled"
    assert part.bytes == part.decoded_bytes < round(part.decoded_bytes * 40 / len(decoded))
    unknown = Tokens([tokens.read(0, len(tokens))], tokenizer)
    score = score_plain(tiny(tokenizer.vocab_size), unknown, 8)
    assert (score.bytes, score.decoded_bytes, score.counted) == (len(decoded), len(decoded), "decoded")
    assert score.bpb == score.bpb_decoded


def test_published_byte_shards_and_our_own(tmp_path: Path) -> None:
    raw = np.frombuffer(b"\0ab\0cd\xff\0", dtype=np.uint8)
    write_shard(tmp_path / "x_val_000.bin", raw)
    published = load_tokens(tmp_path, ByteTokenizer(), Data(tokenizer="bytes"))
    assert text_bytes(published, 7) == (7, 7, "decoded")
    ours = load_tokens(tmp_path, ByteTokenizer(), Data(tokenizer="bytes", byte_separator="yes"))
    assert text_bytes(ours, 7) == (5, 5, "decoded")
    write_shard(tmp_path / "x_train_000.bin", raw)
    # A pattern would score the training shards too.
    with pytest.raises(UserError, match=r"invalid split name '\*'"):
        load_tokens(tmp_path, ByteTokenizer(), Data(tokenizer="bytes"), "*")


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_the_first_wrong_piece_is_named(data: st.DataObject) -> None:
    """One piece that counts one byte too many or too few, as a "▁" has done elsewhere, and as a lost one has."""
    original = tokenizer_of(data.draw(st.sampled_from(["ours", "prefix, nfkc, fallback", "bytes"])))
    tokens = stream(["the first document, and of the", "second"], original)
    ids = tokens.read(0, len(tokens)).tolist()
    wrong, by = data.draw(st.sampled_from(ids[1:])), data.draw(st.sampled_from([-1, 1]))
    first = ids.index(wrong, 1)

    class Wrong(type(original)):  # type: ignore[misc]
        def target_bytes(self, previous: Any, targets: Any) -> Any:
            return super().target_bytes(previous, targets) + by * (np.asarray(targets) == wrong)

    liar = Wrong.__new__(Wrong)
    liar.__dict__.update(original.__dict__)
    lying = Tokens([tokens.read(0, len(tokens))], liar)
    has = len(original.decode([wrong], previous=ids[first - 1]))
    for evaluation in (score_plain, score_carried, functools.partial(score_sliding, stride=4)):
        with pytest.raises(UserError, match=f"position {first} of the stream on: token {wrong}, ") as caught:
            evaluation(tiny(original.vocab_size), lying, 8)
        assert str(caught.value).endswith(f"counts {has + by} bytes and has {has}")
    # Where the piece does not come yet, nothing is wrong.
    assert first == 1 or counted_bytes(lying, first - 1) == counted_bytes(tokens, first - 1)


@pytest.mark.parametrize("kind", ["prefix, nfkc, fallback", "no prefix, identity", "unigram, own symbols"])
def test_a_wrong_table_of_lengths_is_noticed(kind: str) -> None:
    """What is decoded comes from the library, not from the table that is counted by."""
    original = tokenizer_of(kind)
    tokens = stream([" the first document, and of the", "second 漢"], original)
    ids = tokens.read(0, len(tokens))
    assert text_bytes(Tokens([ids], original), len(ids) - 1).decoded == len(tokens.text())
    leads, lengths = original._leads, original._lengths  # type: ignore[union-attr]
    never, twice = np.zeros_like(leads), lengths + leads
    for wrong in ({"_leads": never}, {"_lengths": twice}):
        liar = SentencePieceTokenizer.__new__(SentencePieceTokenizer)
        liar.__dict__.update(original.__dict__ | wrong)
        with pytest.raises(UserError, match="byte accounting is wrong from position 1 "):
            counted_bytes(Tokens([ids], liar), len(ids) - 1)


def test_a_model_whose_library_decodes_other_text_than_its_pieces_is_refused(tmp_path: Path) -> None:
    """Denormalisation rules are part of a model and no piece's name knows of them."""
    rules = tmp_path / "rules.tsv"
    rules.write_text("41\t41 41\n")  # every "A" is written twice
    with pytest.raises(UserError, match=r"decodes its piece \d+, '.*A.*', to b'.*AA.*', which would count \d+ bytes"):
        trained(denormalization_rule_tsv=str(rules))


def test_shards_that_are_not_those_that_were_described_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    build(["one text", "and another"], ByteTokenizer(), folder)
    tokens = open_folder(folder).tokens("train")
    assert text_bytes(tokens, len(tokens) - 1).original == 19
    ids = tokens.read(0, len(tokens)).copy()
    ids[4] = 0  # a letter becomes a document's start: as many tokens, a byte less
    write_shard(folder / "text_train_000000.bin", ids)
    with pytest.raises(UserError, match="decode to 18 bytes, but 19 were recorded"):
        score_plain(tiny(256), open_folder(folder).tokens("train"), 8)


@pytest.mark.skipif(not CORPUS.exists(), reason="the corpus is not beside the project")
def test_the_corpus_has_the_bytes_that_its_description_says() -> None:
    tokenizer = read_tokenizer(CORPUS / "sp8192.model")
    tokens = load_tokens(CORPUS / "val.txt.xz", tokenizer, Data(tokenizer=str(CORPUS / "sp8192.model")))
    assert len(tokens) == 1_667_758
    assert text_bytes(tokens, len(tokens) - 1) == (6_106_876, 6_084_220, "original")
