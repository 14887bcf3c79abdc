"""Evaluation by carried state: the score of a model that reads the text token by token and forgets nothing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from examples import examples
from jepamba.config import Model, Quant
from jepamba.data import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import score_carried, score_plain, score_sliding, stored
from jepamba.evaluate.carried import documents, even_lanes
from jepamba.model import LanguageModel, State
from jepamba.text import ByteTokenizer
from tiny import TOPICS

DOCUMENTS = [text.encode() for text in TOPICS[:30]]


def stream(lengths: list[int], separator: bool = True, head: bytes = b"") -> Tokens:
    """Real documents cut to `lengths`, each after its BOS; `head` comes first and has none."""
    raw = head + b"".join(b"\0" + DOCUMENTS[i % 30][:length] for i, length in enumerate(lengths))
    ids = np.frombuffer(raw, dtype=np.uint8).astype(np.uint16)
    return Tokens([ids[:5], ids[5:]], ByteTokenizer(separator))


def small_model(**settings: Any) -> LanguageModel:
    torch.manual_seed(1)
    shape = {"embed_dim": 12, "d_model": 16, "n_layer": 2, "d_state": 4, "headdim": 8, "mlp_mult": 2.0, "chunk_size": 8}
    model = LanguageModel(Model(vocab_size=256, **(shape | settings)), Quant(large=256))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


MODEL = small_model()


def recurrent_nats(model: LanguageModel, tokens: Tokens, targets: int, reset: bool, temperature: float) -> list[float]:
    """−ln p of each of the first targets in float64, from a model that takes one token at a time."""
    ids = torch.from_numpy(tokens.read(0, targets + 1).astype(np.int64))
    nats, state = [], None
    with stored(model):
        for position in range(targets):
            token = ids[None, position : position + 1]
            if reset and tokens.bos_id is not None and token.item() == tokens.bos_id:
                state = None
            h, state = model(token, None, state)
            logits = model.logits(h[0, -1]).double() / temperature
            nats.append(float(logits.logsumexp(0) - logits[ids[position + 1]]))
    return nats


@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("separator", [True, False])
@pytest.mark.parametrize(
    "lengths", [[3, 30, 1, 17, 0, 15], *(pytest.param(other, marks=pytest.mark.slow) for other in ([60], [7] * 8))]
)
def test_the_score_is_that_of_single_steps(lengths: list[int], separator: bool, reset: bool) -> None:
    tokens = stream(lengths, separator, head=b"before any document")
    targets = len(tokens) - 1
    expected = sum(recurrent_nats(MODEL, tokens, targets, reset, 1.2))
    # Windows of every length, in one lane and in many, over and under the chunk's length.
    for seq_len, tokens_per_batch in ((1, 3), (3, 7), (8, 16), (16, 64), (1000, 100_000)):
        score = score_carried(MODEL, tokens, seq_len, temperature=1.2, reset=reset, tokens_per_batch=tokens_per_batch)
        assert score.nats_per_token * targets == pytest.approx(expected, rel=2e-6)
        assert (score.tokens, score.mode, score.reset, score.temperature) == (targets, "carried", reset, 1.2)
        assert score.bpb_decoded == pytest.approx(expected / math.log(2) / score.decoded_bytes, rel=2e-6)


@pytest.mark.parametrize("reset", [True, False])
def test_a_part_is_the_beginning(reset: bool) -> None:
    tokens = stream([30, 50, 20])
    for limit in (1, 31, 60):
        expected = sum(recurrent_nats(MODEL, tokens, limit, reset, 1.0))
        score = score_carried(MODEL, tokens, 4, limit=limit, reset=reset, tokens_per_batch=8)
        assert score.tokens == limit
        assert score.nats_per_token * limit == pytest.approx(expected, rel=2e-6)


def test_one_window_that_holds_everything_is_the_plain_one() -> None:
    tokens = stream([30, 50, 20])
    for reset in (True, False):
        plain = score_plain(MODEL, tokens, 1000, reset=reset)
        assert score_carried(MODEL, tokens, 8, reset=reset).nats_per_token == pytest.approx(
            plain.nats_per_token, rel=2e-6
        )
    # Where every target has its whole document before it, a window that slides by one sees no more.
    sliding = score_sliding(MODEL, tokens, 102, stride=1)
    assert score_carried(MODEL, tokens, 8).nats_per_token == pytest.approx(sliding.nats_per_token, rel=2e-6)


def test_reset_makesdocuments_independent_and_carrying_on_does_not() -> None:
    tokens, turned = stream([40, 40, 40]), stream([40, 40, 40])
    ids = turned.read(0, len(turned)).copy()
    ids[1:41] = ids[1:41][::-1]
    turned = Tokens([ids], ByteTokenizer())
    for reset in (True, False):
        costs = []
        for text in (tokens, turned):
            whole, first = (score_carried(MODEL, text, 8, reset=reset, limit=limit) for limit in (0, 41))
            costs.append(whole.nats_per_token * whole.tokens - first.nats_per_token * first.tokens)
        assert (abs(costs[0] - costs[1]) < 1e-3) is reset


def test_every_token_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What makes it cheap: one pass, its windows full but for the last of each lane."""
    tokens = stream([200, 10, 60, 90, 33, 120, 5, 70, 150, 44] * 5)
    shapes: list[torch.Size] = []
    forward = LanguageModel.forward

    def watched(self: LanguageModel, inputs: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, State]:
        shapes.append(inputs.shape)
        return forward(self, inputs, *rest)

    monkeypatch.setattr(LanguageModel, "forward", watched)
    score_carried(MODEL, tokens, 16, tokens_per_batch=512)
    read = sum(shape.numel() for shape in shapes)
    assert len(tokens) - 1 <= read <= 1.1 * len(tokens)
    assert all(shape.numel() <= 512 for shape in shapes)
    shapes.clear()
    score_carried(MODEL, tokens, 16, reset=False, tokens_per_batch=512)
    assert [tuple(shape) for shape in shapes] == [(1, 512)] * 7 + [(1, (len(tokens) - 1) % 512)]


@settings(max_examples=examples(200), deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=60), st.integers(1, 20))
def test_lanes_hold_every_part_once_and_are_balanced(lengths: list[int], most: int) -> None:
    ends = np.cumsum(lengths).tolist()
    parts = list(zip([0, *ends[:-1]], ends, strict=True))
    lanes = even_lanes(parts, most)
    assert sorted(part for lane in lanes for part in lane) == parts
    assert 1 <= len(lanes) <= most
    loads = [sum(stop - start for start, stop in lane) for lane in lanes]
    assert min(loads) > 0
    # Graham (1966): who gives each part to the lane that has least, ends by the mean and what is left of the longest.
    assert max(loads) <= sum(lengths) / len(lanes) + (1 - 1 / len(lanes)) * max(lengths) + 1e-9


def testdocuments_are_cut_at_their_starts() -> None:
    tokens = stream([3, 0, 2], head=b"xy")
    assert documents(tokens, 0, len(tokens) - 1) == [(0, 2), (2, 6), (6, 7), (7, 9)]
    assert documents(tokens, 0, 4) == [(0, 2), (2, 4)]
    assert documents(stream([3, 0, 2]), 0, 7) == [(0, 4), (4, 5), (5, 7)]


def test_bad_input_is_refused() -> None:
    tokens = stream([30])
    with pytest.raises(UserError, match="windows of 0"):
        score_carried(MODEL, tokens, 0)
    with pytest.raises(UserError, match="temperature"):
        score_carried(MODEL, tokens, 8, temperature=0.0)
    with pytest.raises(UserError, match="fewer than 2 tokens"):
        score_carried(MODEL, Tokens([np.zeros(1, np.uint16)], ByteTokenizer()), 8)


def test_progress_is_told() -> None:
    reports: list[tuple[float, float]] = []

    def report(done: float, total: float, note: str = "") -> None:
        reports.append((done, total))

    score_carried(MODEL, stream([100]), 8, reset=False, tokens_per_batch=32, progress=report)
    assert reports == [(32, 100), (64, 100), (96, 100), (100, 100)]
