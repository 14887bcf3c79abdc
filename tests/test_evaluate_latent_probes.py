"""Probes of latents whose content is known: they find what was put in, and nothing in noise or with shuffled labels."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from jepamba.errors import UserError
from jepamba.evaluate import Latents, measure_latents
from jepamba.evaluate.latent_probes import (
    match_next_sentence,
    probe_latents,
    probe_rows,
    sentence_quarters,
    vocabulary_parts,
)
from jepamba.evaluate.text_labels import document_groups, document_texts, sentence_numbers
from jepamba.text import ByteTokenizer, Tokenizer
from jepamba.text.bpe import train_bpe

WORDS = {
    "sea": ["ship", "sail", "wave", "storm", "anchor", "harbour", "captain", "deck"],
    "field": ["plough", "seed", "harvest", "barn", "horse", "meadow", "fence", "rain"],
    "law": ["court", "judge", "statute", "appeal", "verdict", "contract", "clause", "tort"],
}
PARAGRAPH = 'He came. "Did he?" she asked. It cost 3.14 crowns, e.g. too much! Then\n\nnothing'


def texts(count: int, seed: int = 0) -> list[tuple[str, str]]:
    """(subject, text) of `count` documents of twelve sentences."""
    rng = np.random.default_rng(seed)
    found = []
    for index in range(count):
        subject = list(WORDS)[index % 3]
        sentences = [" ".join(rng.choice(WORDS[subject], size=rng.integers(4, 9))).capitalize() for _ in range(12)]
        found.append((subject, ". ".join(sentences) + "."))
    return found


def stream(tokenizer: Tokenizer, documents: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and document numbers, with a BOS in front of each document."""
    ids = [np.array([tokenizer.bos_id, *tokenizer.encode(text)], dtype=np.int32) for text in documents]
    return np.concatenate(ids), np.repeat(np.arange(len(ids), dtype=np.int32), [len(part) for part in ids])


def latents(values_ND: Tensor, tokens_N: np.ndarray, documents_N: np.ndarray) -> Latents:
    tokens, documents = (torch.from_numpy(array.astype(np.int32)) for array in (tokens_N, documents_N))
    return Latents(values_ND.float(), tokens, torch.zeros_like(tokens), documents)


@pytest.fixture(scope="module")
def bytes_stream() -> tuple[np.ndarray, np.ndarray]:
    return stream(ByteTokenizer(), [text for _, text in texts(60)])


def one_hot(labels_N: np.ndarray, width: int, noise: float = 0.05) -> Tensor:
    """Latents (N, width) that hold the labels, turned so that no axis is a label, with noise."""
    generator = torch.Generator().manual_seed(1)
    rotation = torch.linalg.qr(torch.randn(width, width, generator=generator)).Q
    held = torch.nn.functional.one_hot(torch.from_numpy(np.maximum(labels_N, 0)), width).float() @ rotation
    return held + noise * torch.randn(held.shape, generator=generator)


@pytest.mark.parametrize("trained", [False, True])
def test_sentences_end_where_the_text_says(trained: bool) -> None:
    tokenizer = train_bpe([PARAGRAPH] * 50, 300) if trained else ByteTokenizer()
    tokens_N, documents_N = stream(tokenizer, [PARAGRAPH, "Two. Here"])
    numbers_N = sentence_numbers(tokens_N, documents_N, tokenizer)
    pieces = [
        tokenizer.decode(tokens_N[numbers_N == number], previous=tokenizer.bos_id).decode().strip()
        for number in range(numbers_N[-1] + 1)
    ]
    expected = ["He came.", '"Did he?" she asked.', "It cost 3.14 crowns, e.g. too much!", "Then", "nothing"]
    assert pieces == [*expected, "Two.", "Here"]
    assert document_texts(tokens_N, documents_N, tokenizer) == [PARAGRAPH.encode(), b"Two. Here"]


def test_quarters_of_sentences() -> None:
    numbers = np.repeat([0, 1, 3], [8, 7, 12])
    assert (
        sentence_quarters(numbers).tolist()
        == [0, 0, 1, 1, 2, 2, 3, 3] + [-1] * 7 + [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3
    )


def test_parts_of_the_vocabulary_have_about_as_many_tokens_each() -> None:
    tokens = np.random.default_rng(0).permutation(np.repeat(np.arange(40), np.arange(1, 41)))
    parts = vocabulary_parts(tokens, 4)
    counts = np.bincount(parts, minlength=4)
    assert counts.min() > 0.2 * len(tokens) - 40
    assert parts[tokens == 39].tolist() == [0] * 40
    assert parts[tokens == 0].tolist() == [3]
    assert all(len(set(parts[tokens == symbol])) == 1 for symbol in range(40))


def test_documents_of_one_subject_form_one_group() -> None:
    found = texts(60)
    groups = document_groups([text.encode() for _, text in found], 3)
    by_subject = {subject: {g for (s, _), g in zip(found, groups, strict=True) if s == subject} for subject in WORDS}
    assert [len(found) for found in by_subject.values()] == [1, 1, 1]
    assert len(set.union(*by_subject.values())) == 3
    assert document_groups([b"same words"] * 12, 3).tolist() == [0] * 12
    assert document_groups([b"1 2 3"] * 12, 3).tolist() == [0] * 12


@pytest.mark.parametrize("what", ["document_group", "sentence_quarter", "part_2"])
def test_a_probe_finds_what_the_latents_hold_and_nothing_else(
    bytes_stream: tuple[np.ndarray, np.ndarray], what: str
) -> None:
    tokens_N, documents_N = bytes_stream
    tokenizer = ByteTokenizer()
    if what == "document_group":
        labels_N = document_groups(document_texts(tokens_N, documents_N, tokenizer), 8)[documents_N]
    elif what == "sentence_quarter":
        labels_N = sentence_quarters(sentence_numbers(tokens_N, documents_N, tokenizer))
    else:
        labels_N = np.roll(vocabulary_parts(tokens_N, 8), -2)
    measured = probe_latents(latents(one_hot(labels_N, 24), tokens_N, documents_N), tokenizer)
    probes = measured["probes"]
    assert probes[what]["accuracy"] > 0.99
    assert probes[what]["majority"] < 0.6
    for name, probe in probes.items():
        # With shuffled labels the probe says the majority, or guesses among classes of the same size.
        assert probe["shuffled"] <= probe["majority"] + 0.08, name
    assert 0.15 < measured["held_out"] / len(tokens_N) < 0.25


def test_noise_gives_the_majority(bytes_stream: tuple[np.ndarray, np.ndarray]) -> None:
    noise_ND = torch.randn(len(bytes_stream[0]), 16, generator=torch.Generator().manual_seed(2))
    measured = probe_latents(latents(noise_ND, *bytes_stream), ByteTokenizer(), seq_len=64)
    names = {f"part_{lag}" for lag in (1, 2, 4, 8, 16, 32)} | {"document_group", "sentence_quarter", "next_sentence"}
    assert measured["probes"].keys() == names
    for name, probe in measured["probes"].items():
        assert abs(probe["accuracy"] - probe["majority"]) < 0.09, name
    assert all(abs(value) < 0.02 for value in measured["cosine"].values())
    assert list(measured["cosine"]) == ["1", "2", "4", "8", "16", "32"], "no pair lies in a window of 64 beyond that"
    assert all(abs(found["r2"]) < 0.01 for found in measured["latent_r2"].values())
    table = probe_rows(measured)
    assert len(table) == 1 + len(names) + len(measured["latent_r2"])
    assert all(len(row) == 4 for row in table)


def test_latents_that_decay_have_the_cosines_and_the_r2_of_their_process() -> None:
    """x_t = ρ x_{t−1} + √(1 − ρ²) ε: the cosine after k is ρ^k, and R² of the linear prediction ρ^2k."""
    count, width, rho = 30_000, 16, 0.9
    noise_ND = torch.randn(count, width, generator=torch.Generator().manual_seed(3))
    values_ND = noise_ND.clone()
    for t in range(1, count):
        values_ND[t] = rho * values_ND[t - 1] + (1 - rho**2) ** 0.5 * noise_ND[t]
    tokens_N = np.tile(np.arange(1, 101), count // 100)
    measured = probe_latents(latents(values_ND + 5.0, tokens_N, np.zeros(count, np.int32)), ByteTokenizer(False))
    for lag in (1, 2, 4, 8, 16):
        assert measured["cosine"][str(lag)] == pytest.approx(rho**lag, abs=0.03)
        assert measured["latent_r2"][str(lag)]["r2"] == pytest.approx(rho ** (2 * lag), abs=0.03)
        assert abs(measured["latent_r2"][str(lag)]["shuffled"]) < 0.02
    assert "document_group" not in measured["probes"], "one document has no groups"


def test_the_next_sentence_is_matched_if_the_end_of_a_sentence_tells_it() -> None:
    rng = np.random.default_rng(4)
    sentences_N = np.repeat(np.arange(400), 6)
    documents_N = sentences_N // 10
    subjects = torch.from_numpy(rng.normal(size=(401, 12)))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(12, 12)))[0])
    told_ND = torch.cat([subjects[:400].repeat_interleave(6, 0), torch.zeros(2400, 12)], 1).double()
    told_ND[5::6, 12:] = subjects[1:] @ turn
    found = match_next_sentence(told_ND, sentences_N, documents_N, 1800, np.random.default_rng(0))
    assert found["accuracy"] > 0.97
    assert abs(found["shuffled"] - 0.5) < 0.15
    blind = match_next_sentence(told_ND[:, :12], sentences_N, documents_N, 1800, np.random.default_rng(0))
    assert abs(blind["accuracy"] - 0.5) < 0.15
    assert match_next_sentence(told_ND, sentences_N, sentences_N, 1800, np.random.default_rng(0)) == {}


def test_measures_of_latents_of_known_rank() -> None:
    """Five equal directions of sixteen: an effective rank of 5, a spectrum of five fifths, all within the windows."""
    generator = torch.Generator().manual_seed(5)
    basis = torch.linalg.qr(torch.randn(16, 5, generator=generator)).Q
    measured = measure_latents(torch.randn(40_000, 5, generator=generator) @ basis.T, 100)
    assert measured["effective_rank"] == pytest.approx(5, abs=0.01)
    assert measured["spectrum"][:5] == pytest.approx([0.2] * 5, abs=0.01)
    assert sum(measured["spectrum"][5:]) < 1e-6
    assert measured["within_sequence"] == pytest.approx(0.99, abs=0.002)


def test_few_latents_are_refused() -> None:
    few = latents(torch.zeros(999, 4), np.ones(999), np.zeros(999))
    with pytest.raises(UserError, match="999 latents are too few for probes"):
        probe_latents(few, ByteTokenizer())
