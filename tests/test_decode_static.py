"""The step on fixed addresses and its sampling are the plain step and its sampling, on a CPU and in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from jepamba.config import Model, Quant
from jepamba.decode.graph import GraphedStep, sampled_tokens
from jepamba.decode.static_step import StaticStep
from jepamba.errors import DivergedError
from jepamba.generate import PromptReader, Sampler, generate, generate_many
from jepamba.model import LanguageModel
from jepamba.text import ByteTokenizer
from needs_gpus import needs_gpus

DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpus())]
TOKENIZER = ByteTokenizer(False)


def small_model(device: str, loaded: bool = True, **settings: Any) -> LanguageModel:
    """A model with random weights, `loaded` as from an artifact."""
    shape: dict[str, Any] = {"embed_dim": 48, "d_model": 64, "n_layer": 4, "d_state": 16, "headdim": 32, "mlp_mult": 2}
    model = LanguageModel(Model(vocab_size=256, chunk_size=16, **(shape | settings)), Quant(large=256))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    with torch.no_grad():
        for weight in model.eval().quant_weights().values() if loaded else ():
            weight.load(weight.effective_weight())
    return model.to(device)


def copied(step: StaticStep) -> list[torch.Tensor]:
    return [value.clone() for layer in step.state for value in layer]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("settings", [{"attention_every": 2, "attention_window": 7}, {"ngroups": 2, "d_conv": 2}])
def test_many_streams_with_resets_are_parallel_passes(device: str, settings: dict[str, Any]) -> None:
    model = small_model(device, **settings).eval()
    tokens = torch.randint(256, (3, 70), device=device)
    reset = torch.rand(3, 70, device=device) < 0.1
    with torch.no_grad():
        state = model(tokens[:, :10], reset[:, :10])[1]
        parallel = model.logits(model(tokens, reset)[0])
    step = StaticStep(model, state)
    addresses = [value.data_ptr() for layer in step.state for value in layer]
    for position in range(10, 70):
        step.tokens_B.copy_(tokens[:, position])
        step.reset_B.copy_(reset[:, position])
        step()
        assert (step.logits_BV - parallel[:, position]).abs().max() < 2e-4
    assert [value.data_ptr() for layer in step.state for value in layer] == addresses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("model_settings", "sampling"),
    [
        pytest.param({}, (1.0, 0, 1.0), marks=pytest.mark.slow),
        ({"attention_every": 2, "attention_window": 7}, (0.7, 9, 0.9)),
        ({"n_layer": 2}, (0.0, 0, 1.0)),
    ],
)
def test_tokens_are_those_of_the_plain_step(
    device: str, model_settings: dict[str, Any], sampling: tuple[float, int, float]
) -> None:
    model = small_model(device, **model_settings)
    reader, plain = PromptReader(model), Sampler(TOKENIZER, model, *sampling, seed=7)
    reader.read([72, 101])
    assert reader.state is not None
    step = StaticStep(model, reader.state)
    step.tokens_B.fill_(108)
    sampler = Sampler(TOKENIZER, model, *sampling, seed=7)
    ours = [row[0] for row in sampled_tokens(GraphedStep(step, sampler.sample), sampler.uniforms, 100)]
    token, expected = 108, []
    for _ in range(100):
        token = plain(reader.read([token]))
        expected.append(token)
    assert ours == expected
    assert len(set(ours)) > 3


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "settings", [pytest.param({}, marks=pytest.mark.slow), {"attention_every": 2, "attention_window": 7}]
)
def test_prompts_of_a_list_take_their_steps_together(
    device: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small_model(device, **settings)
    prompts = ["Hello", "A longer prompt, of other words", "Hello"]
    sampling: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9}
    alone = ["".join(generate(model, TOKENIZER, p, 60, seed=5 + i, **sampling)) for i, p in enumerate(prompts)]
    sizes: list[int] = []

    def noting(step: GraphedStep, uniforms: Callable[[int], torch.Tensor], count: int) -> Iterator[list[int]]:
        sizes.append(len(step.step.tokens_B))
        return sampled_tokens(step, uniforms, count)

    monkeypatch.setattr("jepamba.generate.sampled_tokens", noting)
    together = generate_many(model, TOKENIZER, prompts, 60, seed=5, **sampling)
    assert sizes == [3]
    assert [text[:40] for text in together] == [text[:40] for text in alone]
    assert together[0] != together[2]


@pytest.mark.parametrize("device", DEVICES)
def test_capture_and_suspension_leave_no_trace(device: str) -> None:
    """Building a step changes neither state nor model, and the caller may do anything between two tokens."""
    model = small_model(device, loaded=False).train()
    step = StaticStep(model, model.initial_state(64))
    before = copied(step)
    sampler = Sampler(TOKENIZER, model, 1.0, 0, 1.0, seed=1)
    graphed = GraphedStep(step, sampler.sample)
    assert all(map(torch.equal, copied(step), before))
    rows = sampled_tokens(graphed, lambda count: torch.rand(count, 64, dtype=torch.float64), 12)
    first = next(rows)
    assert len(first) == 64
    assert len(set(first)) > 8  # streams of their own
    assert model.training
    assert not torch.is_inference_mode_enabled()
    model(torch.zeros(1, 3, dtype=torch.int64, device=device))[0].sum().backward()
    assert len(list(rows)) == 11


@pytest.mark.parametrize("gpu", DEVICES[1:])
def test_a_gpu_writes_the_text_of_the_cpu(gpu: str) -> None:
    model = small_model("cpu")
    texts = []
    for device in ("cpu", gpu):
        model.to(device)
        texts.append("".join(generate(model, TOKENIZER, "Hello", 200, seed=5, temperature=0.7)))
    assert texts[0][:100] == texts[1][:100]


def test_the_tokens_that_are_read_are_those_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.decode.graph.ROWS", 8)
    model = small_model("cpu")
    step = StaticStep(model, model.initial_state(2))
    graphed = GraphedStep(step, lambda logits, uniform: (uniform * 1000).long())
    numbers = iter(range(99))
    rows = sampled_tokens(
        graphed,
        lambda count: torch.tensor([[next(numbers), 3] for _ in range(count)], dtype=torch.float64) / 1000 + 1e-6,
        37,
    )
    assert [row[0] for row in rows] == list(range(37))
    assert next(numbers) == 37


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_after_the_first_token_are_an_error(device: str, value: float) -> None:
    """One error, at a token of the vocabulary: the streams that follow it must not index outside the embedding."""
    model = small_model(device, softcap="off")
    reader, sampler = PromptReader(model), Sampler(TOKENIZER, model, 1.0, 0, 1.0, seed=7)
    reader.read([72, 101])
    assert reader.state is not None
    step = StaticStep(model, reader.state)
    rows = sampled_tokens(GraphedStep(step, sampler.sample), sampler.uniforms, 40)
    found = [next(rows)[0] for _ in range(3)]
    step.state[-1][-1].fill_(value)
    with pytest.raises(DivergedError):
        found.extend(row[0] for row in rows)
    assert len(found) < 12
    assert all(0 <= token < 256 for token in [*found, *step.tokens_B.tolist()])
