"""Bytes to tokens and corrections and back, and the adaptive coder that writes the corrections."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from compress_cases import KINDS, ODD, TEXT, tokenizer_named
from examples import examples
from jepamba.compress.adaptive import Frequencies, MixedBit
from jepamba.compress.correction_coding import decode_corrections, encode_corrections
from jepamba.compress.corrections import MAX_CORRECTION_BYTES, Correction, apply_corrections, find_corrections
from jepamba.compress.range_coder import SYMBOLS_PER_BYTE, RangeDecoder, RangeEncoder
from jepamba.compress.tokens import byte_lengths, to_bytes, to_ids
from jepamba.errors import UserError

anything = st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass"))
similar = st.text(alphabet="ab \n\t…ﬁ", max_size=60).map(str.encode)


@pytest.mark.parametrize("name", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(data=anything | similar)
@example(b"")
@example(b"\0" * 30)
@example(TEXT[:2000])
@example(TEXT[:500].decode().encode("utf-16"))
def test_tokens_and_corrections_are_the_data(name: str, data: bytes) -> None:
    tokenizer = tokenizer_named(name)
    ids = to_ids(tokenizer, data)
    ours, lengths = to_bytes(tokenizer, ids), byte_lengths(tokenizer, ids)
    assert lengths.sum() == len(ours)
    changes = find_corrections(ours, data)
    assert apply_corrections(ours, changes, len(data)) == data
    section = encode_corrections(changes, ids, lengths)
    assert list(decode_corrections(section, ids, lengths)) == changes
    if name in ("bytes", "shards"):
        assert not section


@pytest.mark.parametrize("name", KINDS)
def test_odd_bytes(name: str) -> None:
    for data in ODD:
        test_tokens_and_corrections_are_the_data.hypothesis.inner_test(name, data)


@settings(max_examples=examples(300), deadline=None)
@given(ours=similar | anything, wanted=similar | anything)
@example(b"a" * 2000, b"")
@example(b"", b"a" * 2000)
@example(b"x" * 1000 + b"end", b"y" * 1000 + b"end")
@example(b"a b " * 5000, b"a\n\nb " * 5000)
def test_corrections_turn_any_text_into_any_other(ours: bytes, wanted: bytes) -> None:
    changes = find_corrections(ours, wanted)
    assert apply_corrections(ours, changes, len(wanted)) == wanted
    assert (not changes) == (ours == wanted)
    assert all(change.drop <= MAX_CORRECTION_BYTES and len(change.insert) <= MAX_CORRECTION_BYTES for change in changes)
    assert all(change.drop or change.insert for change in changes)
    assert [change.at for change in changes] == sorted(change.at for change in changes)


def test_small_changes_are_found_as_they_are() -> None:
    wanted = "One… and\n\nTwo  three\n4\n5\n6\nthe ﬁrst.\n".encode()
    ours = b"One... and Two three 4 5 6 the first."
    assert find_corrections(ours, wanted) == [
        (3, 3, "…".encode()), (10, 1, b"\n\n"), (15, 0, b" "), (20, 1, b"\n"), (22, 1, b"\n"), (24, 1, b"\n"),
        (26, 1, b"\n"), (31, 2, "ﬁ".encode()), (37, 0, b"\n"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        [Correction(4, 0, b"x")], [Correction(-1, 0, b"")], [Correction(2, 2, b"")], [Correction(0, 0, b"xx")],
        [Correction(0, 2, b""), Correction(1, 0, b"")], [Correction(0, 1, b"")], [],
    ],
)  # fmt: skip
def test_corrections_that_do_not_fit_are_refused(changes: list[Correction]) -> None:
    with pytest.raises(UserError):
        apply_corrections(b"abc", changes, 4)


def test_line_ends_of_real_text_cost_little() -> None:
    tokenizer = tokenizer_named("normalising")
    ids = to_ids(tokenizer, TEXT)
    ours = to_bytes(tokenizer, ids)
    changes = find_corrections(ours, TEXT)
    section = encode_corrections(changes, ids, byte_lengths(tokenizer, ids))
    assert len(changes) > 400
    # A little more than what one of them would cost if nothing were known but how many there are.
    share = len(changes) / len(ids)
    blind = -len(ids) * (share * math.log2(share) + (1 - share) * math.log2(1 - share)) / 8
    assert len(section) < 1.3 * blind


def test_both_directions_agree_and_cost_what_the_model_says() -> None:
    random = np.random.default_rng(0)
    bits = (random.random(4000) < np.where(np.arange(4000) % 3 == 0, 0.9, 0.02)).astype(int).tolist()
    symbols = random.choice(7, 2000, p=[0.5, 0.3, 0.1, 0.05, 0.03, 0.01, 0.01]).tolist()

    def code(coder: RangeEncoder | RangeDecoder, known: bool) -> list[int]:
        flag, which, found = MixedBit(2), Frequencies(7), []
        for index in range(4000):
            found.append(flag.code(coder, (index % 3, "same"), bits[index] if known else 0))
        for index in range(2000):
            found.append(which.code(coder, symbols[index] if known else 0))
            found.append(coder.uniform(5, index % 5 if known else 0))
            found.append(coder.uniform(1, 0))
        return found

    writer = RangeEncoder()
    written = code(writer, True)
    section = writer.finish(1)
    assert code(RangeDecoder(section), False) == written
    entropy = 4000 / 3 * _h(0.9) + 8000 / 3 * _h(0.02) + 2000 * (1.85 + math.log2(5))
    assert 8 * len(section) == pytest.approx(entropy, rel=0.05)


def _h(p: float) -> float:
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


def test_a_section_is_never_shorter_than_its_symbols_allow() -> None:
    """What costs next to nothing is filled up, so that a reader may bound the work by the size."""
    writer = RangeEncoder()
    for _ in range(1000):
        writer.symbol(np.array([1e12, 1.0]), 0)
    section = writer.finish(1000)
    assert len(section) * SYMBOLS_PER_BYTE >= 1000
    assert len(section) < 1000 / SYMBOLS_PER_BYTE + 4
    reader = RangeDecoder(section)
    assert [reader.symbol(np.array([1e12, 1.0])) for _ in range(1000)] == [0] * 1000


@settings(max_examples=examples(60), deadline=None)
@given(section=st.binary(min_size=1, max_size=10).map(lambda raw: raw * 4))
def test_sections_that_nobody_wrote_end(section: bytes) -> None:
    """They give corrections or an error, and no more of them than the section's size allows."""
    tokenizer = tokenizer_named("trained")
    ids = to_ids(tokenizer, TEXT[:300])
    try:
        found = list(decode_corrections(section, ids, byte_lengths(tokenizer, ids)))
    except UserError:
        return
    assert len(found) <= len(section) * SYMBOLS_PER_BYTE
