"""Score-first adaptation: each chunk is scored with the weights that the text before it has left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch

import jepamba.evaluate.score as score_module
from jepamba.data import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import score_adapted, score_carried
from jepamba.evaluate.likelihood import target_nats
from jepamba.model import LanguageModel
from jepamba.ops.dispatch import use_kernels
from jepamba.text import ByteTokenizer
from test_evaluate_carried import small_model, stream

CHUNK = 16


def loaded_model() -> LanguageModel:
    """A model as an artifact gives it: decoded weights, evaluation mode."""
    model = small_model()
    model.load_weights(
        {name: weight.effective_weight().detach() for name, weight in model.eval().quant_weights().items()}
    )
    return model


@pytest.fixture
def chunk_nats(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """−ln p of each batch that is scored from now on, in order.

    In plain PyTorch: passes with gradients can use C++ kernels, which add in another order.
    """
    nats: list[float] = []

    def recorded(*args: Any) -> torch.Tensor:
        nats_KN = target_nats(*args)
        nats.append(float(nats_KN.sum()))
        return nats_KN

    monkeypatch.setattr(score_module, "target_nats", recorded)
    with use_kernels(False):
        yield nats


def snapshot(model: LanguageModel) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def assert_unchanged(model: LanguageModel, before: dict[str, torch.Tensor]) -> None:
    for name, value in model.named_parameters():
        assert torch.equal(value, before[name]), name
        assert value.grad is None
        assert not value.is_inference()


def test_the_first_chunk_is_scored_before_any_training(chunk_nats: list[float]) -> None:
    model, tokens = loaded_model(), stream([100])
    score_carried(model, tokens, CHUNK, limit=CHUNK)
    score_adapted(model, tokens, lr=0.01, chunk_tokens=CHUNK)
    carried, first, *_ = chunk_nats
    assert first == carried
    assert len(chunk_nats) == 1 + 7  # 100 targets in chunks of 16


def test_learning_rate_0_gives_the_carried_score(chunk_nats: list[float]) -> None:
    model, tokens = loaded_model(), stream([30, 50, 20], head=b"before any document")
    for reset in (True, False):
        chunk_nats.clear()
        carried = score_carried(model, tokens, CHUNK, reset=reset, tokens_per_batch=CHUNK)
        adapted = score_adapted(model, tokens, lr=0.0, chunk_tokens=CHUNK, reset=reset)
        assert adapted.nats_per_token == pytest.approx(carried.nats_per_token, rel=2e-6)
        assert (adapted.mode, adapted.reset, adapted.tokens) == ("adapted-0.0", reset, len(tokens) - 1)
        assert adapted.bytes == carried.bytes
        if not reset:  # one lane: the same passes
            half = len(chunk_nats) // 2
            assert chunk_nats[:half] == chunk_nats[half:]


@pytest.mark.parametrize("reset", [True, False])
def test_each_chunk_agrees_with_a_plain_loop(chunk_nats: list[float], reset: bool) -> None:
    """Detached state, mean cross-entropy, and Adam without momentum, written out."""
    model, tokens, lr = small_model(), stream([30, 50, 20]), 0.003
    score_adapted(model, tokens, lr=lr, chunk_tokens=CHUNK, reset=reset)
    ids = torch.from_numpy(tokens.read(0, len(tokens)).astype(np.int64))[None]
    plain, expected = loaded_model(), []
    weights, state = list(plain.parameters()), None
    squares = [torch.zeros_like(weight) for weight in weights]
    for step, start in enumerate(range(0, len(tokens) - 1, CHUNK), 1):
        stop = min(start + CHUNK, len(tokens) - 1)
        inputs, targets = ids[:, start:stop], ids[0, start + 1 : stop + 1]
        h, state = plain(inputs, inputs == tokens.bos_id if reset else None, state)
        state = [type(block)(*(value.detach() for value in block)) for block in state]
        loss = torch.nn.functional.cross_entropy(plain.logits(h[0]), targets)
        expected.append(loss.item() * (stop - start))
        for weight, square, gradient in zip(weights, squares, torch.autograd.grad(loss, weights), strict=True):
            square.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            weight.data -= lr * gradient / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
    assert chunk_nats == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("changed", [17, 40, 63, 90])
def test_a_score_never_depends_on_later_tokens(chunk_nats: list[float], changed: int) -> None:
    """Token `changed` is a target of chunk (changed − 1) // 16. The scores before this chunk stay equal to the bit."""
    model, tokens = loaded_model(), stream([100])
    ids = tokens.read(0, len(tokens)).copy()
    ids[changed:] = ord("#")
    score_adapted(model, tokens, lr=0.01, chunk_tokens=CHUNK)
    score_adapted(model, Tokens([ids], ByteTokenizer()), lr=0.01, chunk_tokens=CHUNK)
    before, after = chunk_nats[:7], chunk_nats[7:]
    first = (changed - 1) // CHUNK
    assert before[:first] == after[:first]
    assert all(a != b for a, b in zip(before[first:], after[first:], strict=True))


def test_a_score_does_not_depend_on_its_own_target(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last target of a chunk is no input of it, so with another target the latents of the chunk stay equal."""
    latents: list[torch.Tensor] = []

    def recorded(model: LanguageModel, h_ND: torch.Tensor, *rest: Any) -> torch.Tensor:
        latents.append(torch.cat([h_ND.flatten(), model.logits(h_ND).flatten()]))
        return target_nats(model, h_ND, *rest)

    monkeypatch.setattr(score_module, "target_nats", recorded)
    model, tokens = loaded_model(), stream([100])
    ids = tokens.read(0, len(tokens)).copy()
    ids[3 * CHUNK] = ord("#")
    for text in (tokens, Tokens([ids], ByteTokenizer())):
        score_adapted(model, text, lr=0.01, chunk_tokens=CHUNK, limit=4 * CHUNK)
    for chunk, (before, after) in enumerate(zip(latents[:4], latents[4:], strict=True)):
        assert torch.equal(before, after) is (chunk < 3)


def test_the_weights_adapt_across_documents(chunk_nats: list[float]) -> None:
    """The state is reset, so the same document is scored better only because the weights have seen it."""
    model, tokens = loaded_model(), stream([15] * 2)
    ids = np.tile(tokens.read(0, CHUNK), 40)
    score_adapted(model, Tokens([ids], ByteTokenizer()), lr=0.01, chunk_tokens=CHUNK)
    assert chunk_nats[-2] < 0.8 * chunk_nats[0]


def test_adaptation_lowers_the_score_of_a_repetitive_text() -> None:
    model, tokens = loaded_model(), Tokens([np.tile(stream([40]).read(0, 41), 50)], ByteTokenizer())
    carried = score_carried(model, tokens, CHUNK)
    adapted = score_adapted(model, tokens, lr=0.002, chunk_tokens=CHUNK)
    assert adapted.bpb < 0.95 * carried.bpb


def stop(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("progress", [None, stop])
@pytest.mark.parametrize("make", [small_model, loaded_model])
def test_the_model_comes_back_unchanged(
    make: Callable[[], LanguageModel], progress: Callable[..., None] | None
) -> None:
    """A model in training too: it is scored with its quantized weights and has its masters back."""
    model, tokens = make(), stream([60])
    before, training = snapshot(model), model.training
    first = score_carried(model, tokens, CHUNK)
    if progress is None:
        again = [score_adapted(model, tokens, chunk_tokens=CHUNK, lr=0.01).bpb for _ in range(2)]
        assert again[0] == again[1]
    else:
        with pytest.raises(KeyboardInterrupt):
            score_adapted(model, tokens, chunk_tokens=CHUNK, lr=0.01, progress=progress)
    assert_unchanged(model, before)
    assert model.training is training
    assert not torch.is_inference_mode_enabled()
    assert score_carried(model, tokens, CHUNK).bpb == first.bpb


def test_bad_input_is_refused() -> None:
    model, tokens = loaded_model(), stream([30])
    for lr in (-1e-4, float("inf"), float("nan")):
        with pytest.raises(UserError, match="must be at least 0 and finite"):
            score_adapted(model, tokens, lr=lr)
    before = snapshot(model)
    with pytest.raises(UserError, match=r"1e\+30: the score is not finite"):
        score_adapted(model, tokens, lr=1e30, chunk_tokens=CHUNK)
    assert_unchanged(model, before)
    with pytest.raises(UserError, match="windows of 0"):
        score_adapted(model, tokens, chunk_tokens=0)
    with pytest.raises(UserError, match="temperature"):
        score_adapted(model, tokens, temperature=0.0)
