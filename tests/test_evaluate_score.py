"""Bits per byte: every target once, exact bytes, no dependence on how the work is cut."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jepamba.config import Model, Quant
from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import calibrate, score_plain, score_sliding, stored
from jepamba.evaluate.windows import Window, plain_windows, sliding_windows
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_bpe
from tiny import TOPICS

DOCUMENTS = TOPICS[:40]


@pytest.fixture(scope="module")
def bpe() -> SentencePieceTokenizer:
    return train_bpe(DOCUMENTS, 400)


def stream(tokenizer: Tokenizer, length: int, extra: str = "") -> Tokens:
    """The first `length` tokens of real documents, each with its BOS; `extra` comes first."""
    parts = [
        np.concatenate([[tokenizer.bos_id] if tokenizer.separator else [], tokenizer.encode(text)])
        for text in ([extra] if extra else []) + [text[:90] for text in DOCUMENTS]
    ]
    ids = np.concatenate(parts).astype(np.uint16)[:length]
    assert len(ids) == length
    # Two shards: a stream must not notice where one ends.
    return Tokens([ids[: length // 3], ids[length // 3 :]], tokenizer)


def small_model(tokenizer: Tokenizer, **settings: Any) -> LanguageModel:
    config = Model(
        vocab_size=tokenizer.vocab_size,
        embed_dim=12,
        d_model=16,
        n_layer=2,
        d_state=4,
        headdim=8,
        mlp_mult=2.0,
        **settings,
    )
    model = LanguageModel(config, Quant(large=256))
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def naive_nats(model: LanguageModel, tokens: Tokens, seq_len: int, stride: int, temperature: float) -> list[float]:
    """−ln p of every target in float64, one window and one target at a time, straight from the definition."""
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype(np.int64))
    targets = len(ids) - 1
    model.eval()
    nats = []
    for target in range(1, targets + 1):
        # The window in which this target counts: the first one that reaches it.
        steps = max(0, math.ceil((target - seq_len) / stride))
        start = steps * stride
        if start + seq_len > targets:
            start = max(0, targets - seq_len) if stride < seq_len else start
        inputs = ids[start : start + seq_len][None, : target - start]
        with torch.no_grad():
            h, _ = model(inputs, inputs == tokens.bos_id if tokens.bos_id is not None else None)
            logits = model.logits(h[0, -1]).double() / temperature
        nats.append(float(logits.logsumexp(0) - logits[ids[target]]))
    return nats


@given(st.integers(1, 300), st.integers(1, 40), st.integers(1, 40))
def test_every_target_is_counted_once(targets: int, seq_len: int, stride: int) -> None:
    stride = min(stride, seq_len)
    for windows in (plain_windows(targets, seq_len), sliding_windows(targets, seq_len, stride)):
        listed = list(windows)
        counted = [w.start + w.length - w.counted + i for w in listed for i in range(w.counted)]
        assert counted == list(range(targets))
        assert all(w.start >= 0 and w.length <= seq_len for w in listed)
    # All but those of the first window are seen with at least sequence − stride tokens before them.
    assert all(w.length - w.counted >= seq_len - stride for w in listed[1:])


def test_sliding_windows_of_a_short_text() -> None:
    assert list(sliding_windows(21, 8, 4)) == [
        Window(0, 8, 8), Window(4, 8, 4), Window(8, 8, 4), Window(12, 8, 4), Window(13, 8, 1)
    ]  # fmt: skip
    assert list(sliding_windows(5, 8, 4)) == [Window(0, 5, 5)]


@pytest.mark.parametrize("kind", ["bytes", "shard-bytes", "bpe"])
@pytest.mark.parametrize(("seq_len", "stride"), [(16, 16), (16, 5)])
def test_scores_equal_the_definition(bpe: SentencePieceTokenizer, kind: str, seq_len: int, stride: int) -> None:
    tokenizer: Tokenizer = bpe if kind == "bpe" else ByteTokenizer(kind == "bytes")
    tokens, model = stream(tokenizer, 63), small_model(tokenizer)
    expected = naive_nats(model, tokens, seq_len, stride, 1.3)
    if stride == seq_len:
        score = score_plain(model, tokens, seq_len, temperature=1.3, tokens_per_batch=50)
        assert score.mode == "plain"
    else:
        score = score_sliding(model, tokens, seq_len, stride=stride, temperature=1.3, tokens_per_batch=50)
        assert score.mode == "sliding-5"
    text = tokenizer.decode(tokens.read(1, 63), previous=int(tokens.read(0, 1)[0]))
    assert score.tokens == 62 == len(expected)
    assert score.bytes == len(text)
    assert score.nats_per_token == pytest.approx(sum(expected) / 62, rel=1e-5)
    assert score.bpb == pytest.approx(sum(expected) / math.log(2) / len(text), rel=1e-5)
    assert score.temperature == 1.3


def test_the_tail_shorter_than_a_stride_is_scored() -> None:
    """The published script lost the last targets of a sliding evaluation (openai/parameter-golf, pull request 903)."""
    model = small_model(ByteTokenizer())
    for length in (18, 19, 20, 21, 22):
        assert score_sliding(model, stream(ByteTokenizer(), length), 8, stride=4).tokens == length - 1
        assert score_plain(model, stream(ByteTokenizer(), length), 8).tokens == length - 1


@pytest.mark.parametrize("vocab", ["bytes", "bpe"])
def test_loss_does_not_depend_on_batch_or_slice(
    bpe: SentencePieceTokenizer, vocab: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer: Tokenizer = ByteTokenizer() if vocab == "bytes" else bpe
    model, tokens = small_model(tokenizer), stream(tokenizer, 1500)
    one = score_plain(model, tokens, 64, tokens_per_batch=1).nats_per_token
    assert score_plain(model, tokens, 64, tokens_per_batch=10**6).nats_per_token == pytest.approx(one, abs=1e-6)
    monkeypatch.setitem(__import__("jepamba.evaluate.likelihood", fromlist=["x"]).SLICE_LOGITS, "cpu", 1)
    assert score_plain(model, tokens, 64, tokens_per_batch=500).nats_per_token == pytest.approx(one, abs=1e-6)


def test_sliding_by_the_whole_window_is_plain() -> None:
    model, tokens = small_model(ByteTokenizer()), stream(ByteTokenizer(), 32 * 9 + 1)
    plain, sliding = score_plain(model, tokens, 32), score_sliding(model, tokens, 32, stride=32)
    assert sliding.nats_per_token == pytest.approx(plain.nats_per_token, abs=1e-6)


@pytest.mark.parametrize("reset", [True, False])
def test_reset_hides_the_document_before(reset: bool) -> None:
    """What follows a document costs the same after either of two others, unless the state is carried over."""
    model, costs = small_model(ByteTokenizer()), []
    for first in ("abc" * 9, "xyz" * 9):
        tokens = stream(ByteTokenizer(), 200, first)
        # The first document and, predicted from it, the next one's BOS: 28 targets.
        whole, before = (score_plain(model, tokens, 199, reset=reset, limit=limit) for limit in (0, 28))
        costs.append(whole.nats_per_token * whole.tokens - before.nats_per_token * before.tokens)
    assert (abs(costs[0] - costs[1]) < 1e-3) is reset


def test_limit_scores_the_beginning_only() -> None:
    model, tokens = small_model(ByteTokenizer()), stream(ByteTokenizer(), 400)
    limited = score_plain(model, tokens, 64, limit=100)
    alone = score_plain(model, stream(ByteTokenizer(), 101), 64)
    assert (limited.tokens, limited.bytes) == (100, alone.bytes)
    assert limited.bpb == pytest.approx(alone.bpb, abs=1e-9)


def test_separators_cost_loss_and_count_no_bytes() -> None:
    ids = np.frombuffer(b"\0ab\0cd\0\0e", dtype=np.uint8).astype(np.uint16)
    model = small_model(ByteTokenizer())
    ours = score_plain(model, Tokens([ids], ByteTokenizer(True)), 8)
    published = score_plain(model, Tokens([ids], ByteTokenizer(False)), 8)
    assert (ours.tokens, ours.bytes) == (8, 5)
    assert (published.tokens, published.bytes) == (8, 8)
    assert ours.bpb == pytest.approx(ours.nats_per_token * 8 / math.log(2) / 5)


def test_wrong_byte_accounting_is_refused_by_piece(
    bpe: SentencePieceTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens, model = stream(bpe, 300), small_model(bpe)
    # A "▁" that counts even after a control token is what the rule of the spec is about.
    original = bpe.target_bytes
    wrong = int(tokens.read(120, 121)[0])
    first = next(i for i in range(1, 300) if int(tokens.read(i, i + 1)[0]) == wrong)

    def target_bytes(previous: Any, targets: Any) -> Any:
        return original(previous, targets) + (np.asarray(targets) == wrong)

    monkeypatch.setattr(bpe, "target_bytes", target_bytes)
    with pytest.raises(UserError, match=f"position {first} of the stream") as caught:
        score_plain(model, tokens, 64)
    piece = bpe.decode([wrong])
    assert f"token {wrong}, which decodes to {piece!r}, counts {len(piece) + 1} bytes and has {len(piece)}" in str(
        caught.value
    )


def test_the_model_is_left_as_it_was() -> None:
    model, tokens = small_model(ByteTokenizer()), stream(ByteTokenizer(), 100)
    before = {name: (value.data_ptr(), value.detach().clone()) for name, value in model.named_parameters()}
    for training in (True, False):
        model.train(training)
        score_plain(model, tokens, 32)
        calibrate(model, tokens, 32, 64)
        assert model.training is training
        assert not any(weight.loaded for weight in model.quant_weights().values())
        for name, value in model.named_parameters():
            assert value.data_ptr() == before[name][0]
            assert torch.equal(value.detach(), before[name][1])
    model.train()
    model(torch.zeros(1, 4, dtype=torch.int64))[0].sum().backward()  # and it still trains


def test_an_evaluation_sees_the_stored_weights() -> None:
    """The published script validated the unquantized master weights (openai/parameter-golf, pull request 903)."""
    model, tokens = small_model(ByteTokenizer()), stream(ByteTokenizer(), 100)
    model.train()
    score = score_plain(model, tokens, 32)
    for weight in model.quant_weights().values():
        weight.load(weight.quantizer.decode(weight.export(), tuple(weight.master.shape)))
    assert score_plain(model, tokens, 32).nats_per_token == score.nats_per_token


def test_an_error_inside_leaves_the_model_as_it_was() -> None:
    model = small_model(ByteTokenizer())
    model.train()
    before = model.token_embed.master.data_ptr()

    def broken() -> None:
        with stored(model):
            assert not model.training
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        broken()
    assert model.training
    assert model.token_embed.master.data_ptr() == before


def test_bad_input_is_refused(bpe: SentencePieceTokenizer) -> None:
    model, tokens = small_model(ByteTokenizer()), stream(ByteTokenizer(), 60)
    with pytest.raises(UserError, match="fewer than 2 tokens"):
        score_plain(model, stream(ByteTokenizer(), 1), 8)
    with pytest.raises(UserError, match="the model only 256"):
        score_plain(model, stream(bpe, 60), 8)
    with pytest.raises(UserError, match="no bytes"):
        score_plain(model, Tokens([np.zeros(9, dtype=np.uint16)], ByteTokenizer()), 8)
    for stride in (0, 9):
        with pytest.raises(UserError, match="stride"):
            score_sliding(model, tokens, 8, stride=stride)
    for temperature in (0.0, -1.0, 1e-9, 0.0009, 1001.0, math.inf, math.nan):
        with pytest.raises(UserError, match=r"temperature .*: must be between 0\.001 and 1000"):
            score_plain(model, tokens, 8, temperature=temperature)


def test_calibration_finds_the_grid_s_best() -> None:
    model, tokens = small_model(ByteTokenizer(), softcap="off"), stream(ByteTokenizer(), 600)
    # A head that is far too sure of itself, or not nearly enough.
    for factor in (3.0, 0.05):
        scaled = small_model(ByteTokenizer(), softcap="off")
        scaled.load_state_dict(model.state_dict())
        scaled.head.embed_proj_rev.weight.master.data *= factor
        scaled.head.vocab_bias.master.data *= factor
        best = calibrate(scaled, tokens, 64, 400)
        coarse = (0.5, 0.7, 0.85, 0.95, 1.0, 1.1, 1.3, 1.5, 2.0)
        middle = min(coarse, key=lambda t: score_plain(scaled, tokens, 64, temperature=t, limit=400).bpb)
        fine = [round(middle + step / 100, 4) for step in (-6, -4, -2, 0, 2, 4, 6)]
        assert best == min(fine, key=lambda t: score_plain(scaled, tokens, 64, temperature=t, limit=400).bpb)
        assert best > 0
    with pytest.raises(UserError, match="no training text"):
        calibrate(model, stream(ByteTokenizer(), 1), 64, 400)


def test_progress_is_told() -> None:
    reports: list[tuple[float, float]] = []

    def report(done: float, total: float, note: str = "") -> None:
        reports.append((done, total))

    score_plain(small_model(ByteTokenizer()), stream(ByteTokenizer(), 100), 32, tokens_per_batch=32, progress=report)
    assert reports == [(32, 99), (64, 99), (96, 99), (99, 99)]
