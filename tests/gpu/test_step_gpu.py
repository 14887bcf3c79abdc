"""The training step on a GPU: kernels against plain PyTorch, the captured graph against the same work launched."""

import contextlib
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_run
from torch import Tensor

from jepamba.config import Model, Quant, Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.jepa import LatentWeights
from jepamba.model import LanguageModel
from jepamba.ops import dispatch
from jepamba.presets import load_preset
from jepamba.study.plan import Configuration, Plan, load_plan
from jepamba.train import resolve
from jepamba.train import step as step_module
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer
from needs_gpus import needs_gpus

pytestmark = [
    *needs_gpus(),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Corpus]:
    """Two micro-batches a step of a model with everything in it, on the English inside Python."""
    run = small_run(tmp_path_factory.mktemp("cache"))
    text = corpus(run.data)
    return resolve(run, text), text


def steps(run: Run, text: Corpus, kernels: bool, count: int) -> list[dict[str, float]]:
    with dispatch.use_kernels(kernels):
        trainer = Trainer(TrainState(run, text, choose_device(run.train)))
        return [trainer.train_step(0.0) for _ in range(count)]


@pytest.mark.parametrize("graph", [False, True])
def test_a_bad_step_changes_nothing(small: tuple[Run, Corpus], monkeypatch: pytest.MonkeyPatch, graph: bool) -> None:
    run, text = small
    trainer = Trainer(TrainState(replace(run, train=replace(run.train, graph=graph)), text, choose_device(run.train)))
    losses = [trainer.train_step(0.0)["loss"] for _ in range(3)]
    before = {name: value.clone() for name, value in trainer.state.tensors().items()}
    weights = step_module.latent_weights
    monkeypatch.setattr(step_module, "latent_weights", lambda *given: LatentWeights(0.1, math.nan))
    with pytest.raises(NotFiniteError, match="step 4: the loss is nan"):
        trainer.train_step(0.0)
    assert [name for name, value in trainer.state.tensors().items() if not torch.equal(value, before[name])] == []
    monkeypatch.setattr(step_module, "latent_weights", weights)
    losses += [trainer.train_step(0.0)["loss"] for _ in range(8)]
    assert all(math.isfinite(loss) for loss in losses)
    assert losses[-1] < losses[0]
    changed = [name for name, value in trainer.state.tensors().items() if not torch.equal(value, before[name])]
    assert any(name.startswith("optim/momentum/") for name in changed)


def test_attention_gives_the_losses_of_plain_pytorch(small: tuple[Run, Corpus]) -> None:
    run, text = small
    run = with_settings(run, {"model.attention_every": 2, "model.attention_window": 48})
    ours = steps(run, text, True, 6)
    plain = steps(replace(run, train=replace(run.train, graph=False)), text, False, 6)
    for a, b in zip(ours, plain, strict=True):
        assert a["ce"] == pytest.approx(b["ce"], rel=5e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-2)
    assert ours[-1]["ce"] < ours[0]["ce"] - 0.1


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("overlay", ["", "+sigreg-lewm"])
def test_kernels_give_the_losses_of_plain_pytorch(small: tuple[Run, Corpus], reset: bool, overlay: str) -> None:
    run, text = small
    jepa = replace(load_preset(f"submission-bpe{overlay}").jepa, sigreg_projections=64)
    run = replace(run, data=replace(run.data, reset=reset), jepa=jepa)
    ours = steps(run, text, True, 6)
    plain = steps(replace(run, train=replace(run.train, graph=False)), text, False, 6)
    for a, b in zip(ours, plain, strict=True):
        assert a["ce"] == pytest.approx(b["ce"], rel=5e-3)
        assert a["jepa"] == pytest.approx(b["jepa"], rel=5e-2)
        assert a["sigreg"] == pytest.approx(b["sigreg"], rel=5e-2)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=5e-2)
    assert ours[-1]["ce"] < ours[0]["ce"] - 0.1


ARMS = [
    (plan, arm)
    for plan in map(load_plan, ("jepa-forms-20", "jepa-nextlat-20", "jepa-h-weights-20"))
    for arm in plan.configurations
    if not arm.name.startswith("off")
]


@pytest.mark.parametrize(("plan", "arm"), ARMS, ids=lambda item: item.name)
def test_every_form_of_the_study_gives_the_losses_of_plain_pytorch(
    small: tuple[Run, Corpus], plan: Plan, arm: Configuration
) -> None:
    run, text = small
    jepa = plan.run(arm, 1).jepa
    jepa = replace(jepa, sigreg_projections=64, layer=min(jepa.layer, run.model.n_layer - 1))
    if jepa.sigreg_pool != "timestep":
        jepa = replace(jepa, sigreg_samples=256)
    run = replace(run, jepa=jepa)
    ours = steps(run, text, True, 3)
    plain = steps(replace(run, train=replace(run.train, graph=False)), text, False, 3)
    for a, b in zip(ours, plain, strict=True):
        assert a["ce"] == pytest.approx(b["ce"], rel=5e-3)
        for term in ("jepa", "sigreg", "vicreg", "grad_norm"):
            assert a[term] == pytest.approx(b[term], rel=5e-2)


FORMS = {"jepa.layer": 2, "jepa.action": True, "jepa.stride": 4, "jepa.target_tokens": 8, "jepa.vicreg_weight": 0.5}


@pytest.mark.parametrize("forms", [{}, FORMS], ids=["next token", "other forms"])
def test_the_graph_does_what_the_launches_do(small: tuple[Run, Corpus], forms: dict[str, Any]) -> None:
    run, text = small
    run = with_settings(run, {**forms})
    replayed = steps(run, text, True, 4)
    launched = steps(replace(run, train=replace(run.train, graph=False)), text, True, 4)
    for a, b in zip(replayed, launched, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-4)


def test_the_graphs_read_the_schedule(small: tuple[Run, Corpus]) -> None:
    """Rates fall to nothing, momentum doubles, fake quantization begins half-way, the latent terms fall and
    end: a graph that had kept the first step's values would be somewhere else soon."""
    run, text = small
    changes: dict[str, Any] = {"optim.warmdown": 1.0, "optim.muon_momentum_start": 0.4, "optim.muon_momentum_steps": 6}
    changes |= {"jepa.until": 0.7, "jepa.anneal": True, "jepa.target_ema": 0.5}
    run = with_settings(run, {**changes, "quant.qat_fraction": 0.5})
    found = []
    for graph in (True, False):
        state = TrainState(replace(run, train=replace(run.train, graph=graph)), text, choose_device(run.train))
        trainer = Trainer(state)
        losses = [trainer.train_step(step / 8)["loss"] for step in range(8)]
        found.append((losses, [p.detach().clone() for p in state.parameters()]))
    (replayed, ours), (launched, theirs) = found
    assert replayed == pytest.approx(launched, rel=1e-4)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= 1e-2 * b.norm()


def test_a_restored_state_goes_on_with_its_graphs(small: tuple[Run, Corpus]) -> None:
    """As after ghost steps: all goes back, into the tensors that the graphs read."""
    run, text = small
    state = TrainState(run, text, choose_device(run.train))
    trainer = Trainer(state)
    for _ in range(2):
        trainer.train_step(0.0)
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    metadata = state.metadata()
    first = [trainer.train_step(0.0) for _ in range(3)]
    state.restore(tensors, metadata)
    assert [trainer.train_step(0.0) for _ in range(3)] == first
    fresh = TrainState(run, text, choose_device(run.train))
    fresh.restore(tensors, metadata)
    again = Trainer(fresh)
    assert [again.train_step(0.0)["loss"] for _ in range(3)] == pytest.approx([r["loss"] for r in first], rel=1e-5)


def test_the_same_run_twice_is_the_same(small: tuple[Run, Corpus], tmp_path: Path) -> None:
    run, text = small
    assert steps(run, text, True, 4) == steps(run, text, True, 4)


@pytest.mark.parametrize("embed_dim", [48, 64])
@pytest.mark.parametrize("cached", [False, True])
def test_the_residual_stream_is_in_the_compute_dtype(embed_dim: int, cached: bool) -> None:
    torch.manual_seed(0)
    config = Model(vocab_size=50, embed_dim=embed_dim, d_model=64, n_layer=4, headdim=32, d_state=16, chunk_size=16)
    model = LanguageModel(config, Quant(large=64)).cuda().train()
    tokens = torch.randint(50, (2, 100), device="cuda")
    seen: list[Tensor] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, args, out: seen.extend((args[0], args[1], *out[0])))
    truth, _ = model(tokens)
    assert {value.dtype for value in (*seen, truth)} == {torch.float32}
    seen.clear()
    cache = model.cached_weights(torch.bfloat16)
    cache.compute()
    with cache if cached else contextlib.nullcontext(), torch.autocast("cuda", torch.bfloat16):
        h, _ = model(tokens)
    assert {value.dtype for value in (*seen, h)} == {torch.bfloat16}
    assert (h - truth).norm() < 0.03 * truth.norm()
