"""Tests of the selection of held-out documents: what they share with the training text, counted string by string."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest

from jepamba.errors import UserError
from jepamba.text import near_duplicates, stdlib_documents
from jepamba.text.near_duplicates import hold_out, hold_out_end
from tiny import TOPICS


@pytest.fixture(scope="module", params=["topics", pytest.param("stdlib", marks=pytest.mark.slow)])
def stdlib(request: pytest.FixtureRequest) -> list[str]:
    """The text in Python: the language reference alone, or with the docstrings of the library."""
    return TOPICS if request.param == "topics" else [text for _, text in stdlib_documents()]


def exact_overlap(documents: Sequence[str], held: Sequence[bool]) -> float:
    """Share of the 50-byte strings of the held-out documents that are in another document."""
    strings = [[data[at : at + 50] for at in range(len(data) - 49)] for data in (text.encode() for text in documents)]
    training = {string for found, out in zip(strings, held, strict=True) if not out for string in found}
    tested = [string in training for found, out in zip(strings, held, strict=True) if out for string in found]
    return sum(tested) / len(tested)


def words(seed: int, count: int) -> str:
    """Random words, `count` times four bytes."""
    letters = random.Random(seed)
    return "".join(f"{''.join(letters.choices('abcdefghij', k=3))} " for _ in range(count))


def test_the_held_out_standard_library_shares_at_most_one_percent(stdlib: list[str]) -> None:
    found = hold_out(stdlib, 0.1)
    held = [text in found for text in stdlib]
    assert sum(held) == round(0.1 * len(stdlib))
    overlap = exact_overlap(stdlib, held)
    assert overlap <= 0.01
    assert found.overlap == pytest.approx(overlap, abs=1e-12)
    # Documents taken without regard to what they share do share a lot.
    assert exact_overlap(stdlib, [index % 10 == 0 for index in range(len(stdlib))]) > 0.05


@pytest.mark.parametrize("samples", [1 << 23, 200_000])
def test_the_order_of_the_documents_does_not_matter(
    monkeypatch: pytest.MonkeyPatch, stdlib: list[str], samples: int
) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_SAMPLES", samples)
    found = hold_out(stdlib, 0.1)
    assert hold_out(stdlib, 0.1) == found
    assert hold_out(stdlib[::-1], 0.1) == found
    assert hold_out(random.Random(0).sample(stdlib, len(stdlib)), 0.1) == found
    assert hold_out(stdlib, 0.2) != found


def test_a_sample_of_the_passages_is_close(monkeypatch: pytest.MonkeyPatch, stdlib: list[str]) -> None:
    monkeypatch.setattr(near_duplicates, "MAX_SAMPLES", 200_000)
    found = hold_out(stdlib, 0.1)
    overlap = exact_overlap(stdlib, [text in found for text in stdlib])
    assert overlap <= 0.01
    assert found.overlap == pytest.approx(overlap, abs=0.002)


def test_passages_across_blocks_count(monkeypatch: pytest.MonkeyPatch, stdlib: list[str]) -> None:
    whole = hold_out(stdlib[:60], 0.2)
    monkeypatch.setattr(near_duplicates, "_BLOCK", 4096)
    assert hold_out(stdlib[:60], 0.2) == whole


@pytest.mark.parametrize("documents", [["only one " * 20], ["only one " * 20] * 5, ["short"], []])
def test_one_document_cannot_be_divided(documents: list[str]) -> None:
    with pytest.raises(UserError, match="only one document"):
        hold_out(documents, 0.1)


def test_near_duplicates_alone_cannot_be_divided() -> None:
    text = words(0, 1000)
    with pytest.raises(UserError, match="all documents are near-duplicates"):
        hold_out([f"{text}{words(seed, 20)}" for seed in range(1, 9)], 0.1)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_near_duplicates_are_on_one_side(share: float) -> None:
    families = [[f"{words(family, 200)}{words(100 * family + n, 20)}" for n in range(1, 4)] for family in range(1, 11)]
    found = hold_out([text for family in families for text in family], share)
    sides = [{text in found for text in family} for family in families]
    assert all(len(side) == 1 for side in sides)
    assert sides.count({True}) == round(share * 30) // 3
    assert found.overlap == 0.0


def test_a_group_larger_than_the_share_is_held_out_if_no_other_fits() -> None:
    families = [[f"{words(family, 200)}{words(100 * family + n, 20)}" for n in range(3)] for family in (1, 2)]
    found = hold_out([text for family in families for text in family], 0.1)
    assert sorted(sum(text in found for text in family) for family in families) == [0, 3]


def test_documents_without_near_duplicates_are_held_out_first() -> None:
    family = [f"{words(0, 200)}{words(seed, 20)}" for seed in range(1, 9)]
    others = [words(seed, 200) for seed in range(101, 113)]
    found = hold_out(family + others, 0.5)
    assert [text in found for text in family] == [False] * 8
    assert sum(text in found for text in others) == 10


def test_a_passage_in_every_document_is_counted_and_reported() -> None:
    header = words(0, 60)
    documents = [f"{header}{words(seed, 940)}" for seed in range(1, 41)]
    found = hold_out(documents, 0.1)
    held = [text in found for text in documents]
    assert sum(held) == 4
    assert found.overlap == pytest.approx(exact_overlap(documents, held), abs=1e-12)
    assert 0.04 < found.overlap < 0.06


def test_what_shares_a_passage_is_left_to_training_while_other_text_can_be_held_out() -> None:
    header = words(0, 60)
    documents = [f"{header}{words(seed, 940)}" for seed in range(1, 41)]
    others = [words(seed, 1000) for seed in range(101, 104)]
    found = hold_out(documents + others, 0.5)
    assert [text in found for text in documents + others] == [False] * 40 + [True] * 3
    assert found.overlap == 0.0


def test_documents_shorter_than_a_passage_are_divided() -> None:
    documents = [f"document {index}" for index in range(20)]
    found = hold_out(documents * 3, 0.1)
    assert sum(text in found for text in documents) == 2
    assert found.overlap == 0.0


@pytest.mark.parametrize(
    ("text", "share", "start"),
    [
        ("a b\n" * 40 + "\n" + "c d\n" * 4, 0.1, 161),
        ("a b\n" * 20 + "\n" + "c d\n" * 25, 0.1, 161),  # the paragraph ends too far away: a line
        ("\n\n".join("para graph" for _ in range(50)), 0.2, 480),
        ("ab " * 40, 0.4, 72),
        ("a" * 70 + "\n \n\n" + "b" * 30, 0.1, 94),  # no break near the share
        ("ab", 0.4, 1),
    ],
)
def test_the_end_of_a_document_starts_after_a_paragraph(text: str, share: float, start: int) -> None:
    found, held = hold_out_end(lambda: [text], share)
    assert found == start
    assert text[start:] in held
    assert text[:start] not in held


@pytest.mark.parametrize("text", ["a", "same\n\nsame\n\n"])
def test_some_documents_have_no_end_to_hold_out(text: str) -> None:
    with pytest.raises(UserError, match="whose end cannot be held out"):
        hold_out_end(lambda: [text], 0.5)


def test_the_overlap_of_an_end_is_counted() -> None:
    text = words(1, 2000)
    repeated = f"{text}\n\n{text[:1000]}"
    start, held = hold_out_end(lambda: [repeated], 1000 / len(repeated))
    assert repeated[start:] == text[:1000]
    assert held.overlap == 1.0
    assert hold_out_end(lambda: [text], 0.1)[1].overlap < 0.01
