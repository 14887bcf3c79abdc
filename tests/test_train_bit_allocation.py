"""Bit allocation: chosen by loss increase, stored in checkpoint and artifact, restored on resume, in the budget."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

from jepamba.artifact import load_artifact, save_artifact
from jepamba.config import ConfigError, Run, from_dict, with_settings
from jepamba.errors import UserError
from jepamba.quant import IntQuantizer
from jepamba.train import bit_allocation, resume, train
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from tiny import opened

BUDGET = 10_000


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\0".join(body for _, body in sorted(topics.topics.items())[:20]))
    return path


@pytest.fixture(scope="module")
def small(text: Path) -> Run:
    return from_dict(
        {
            "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 32, "cache": str(text.parent / "cache")},
            "model": {"embed_dim": 16, "d_model": 32, "n_layer": 2, "headdim": 16, "d_state": 8, "chunk_size": 16}
            | {"mlp_mult": 2.0},
            "jepa": {"weight": 0.0, "sigreg_weight": 0.0},
            "quant": {"large": 512, "budget_bytes": BUDGET, "embedding": "int6"},
            "train": {
                "steps": 8,
                "tokens_per_step": 256,
                "tokens_per_micro": 128,
                "seed": 3,
                "checkpoint_seconds": 0.0,
            },
            "eval": {"calibrate_tokens": 512, "diagnostics_tokens": 0, "sample_tokens": 4, "prompts": ["The "]},
        }
    )


@pytest.fixture(scope="module")
def whole(small: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a checkpoint of every step."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(with_settings(small, {"train.checkpoint_every": 1, "train.keep_checkpoints": 20}), out)
    return out


def events(out: Path) -> list[tuple[int, str]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["what"]) for line in lines if line["kind"] == "event"]


def test_a_run_chooses_bits_twice_and_keeps_its_budget(whole: Path) -> None:
    summary = json.loads((whole / "summary.json").read_text())
    assert 0.97 * BUDGET < summary["artifact_bytes"] <= BUDGET
    assert (whole / "artifact.jepa").stat().st_size == summary["artifact_bytes"]
    chosen = [(step, what) for step, what in events(whole) if what.startswith("bits chosen")]
    assert [step for step, _ in chosen] == [4, 7]  # of 8 steps: half, and two thirds of the rest
    states = {path.name: load_checkpoint(path)[1]["bit_allocation"] for path in checkpoints(whole / "checkpoints")}
    assert states["step-000000004"] == {}
    for step, (_, message) in ((5, chosen[0]), (7, chosen[0]), (8, chosen[1])):
        assert all(f"{name} {bits}" in message for name, bits in states[f"step-{step:09}"].items())
    trained = states["step-000000008"]
    assert len(set(trained.values())) > 1  # mixed indeed
    artifact = load_artifact(whole / "artifact.jepa")
    quantizers = {name: weight.quantizer for name, weight in artifact.model.quant_weights().items()}
    assert artifact.run.quant.bits_by_name == summary["bit_allocation"]
    for name, bits in summary["bit_allocation"].items():
        quantizer = quantizers[name]
        assert isinstance(quantizer, IntQuantizer)
        assert quantizer.bits == bits
        assert bits <= trained[name]
    integers = {name for name, quantizer in quantizers.items() if isinstance(quantizer, IntQuantizer)}
    assert integers == summary["bit_allocation"].keys()


@pytest.mark.parametrize("cut", [6, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (3, 8))])
def test_resume_before_and_after_the_choice_repeats_the_run(whole: Path, tmp_path: Path, cut: int) -> None:
    out = tmp_path / "cut"
    shutil.copytree(whole, out)
    for name in ("artifact.jepa", "summary.json"):
        (out / name).unlink()
    for path in checkpoints(out / "checkpoints")[cut:]:
        shutil.rmtree(path)
    again = resume(out)
    assert again["bit_allocation"] == json.loads((whole / "summary.json").read_text())["bit_allocation"]
    assert (out / "artifact.jepa").read_bytes() == (whole / "artifact.jepa").read_bytes()


def test_the_live_model_is_the_artifact_with_weighted_scales_and_mixed_bits(small: Run, tmp_path: Path) -> None:
    state = opened(small)
    trainer = Trainer(state)
    for _ in range(3):
        trainer.train_step(0.9)
    bit_allocation.choose_bits(state, 0.9)
    trainer.train_step(0.95)
    path = tmp_path / "a.jepa"
    save_artifact(path, state.model, state.run, state.corpus.tokenizer)
    tokens = torch.randint(256, (2, 40))
    with torch.no_grad():
        state.model.train()
        trained_on = state.model.logits(state.model(tokens)[0])
        loaded = load_artifact(path).model
        assert torch.equal(loaded.logits(loaded(tokens)[0]), trained_on)


def test_measuring_changes_no_state(small: Run) -> None:
    state = opened(small)
    Trainer(state).train_step(0.6)
    metadata = json.dumps(state.metadata())
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    first, second = bit_allocation.measure_options(state, 0.6), bit_allocation.measure_options(state, 0.6)
    assert first == second
    assert json.dumps(state.metadata()) == metadata
    assert all(torch.equal(value, tensors[name]) for name, value in state.tensors().items())
    assert not any(p.grad is not None and p.grad.any() for p in state.parameters())


@pytest.mark.slow
def test_choosing_bits_is_not_training_time(small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen, spent = bit_allocation.choose_bits, list[float]()

    def slowly(state: TrainState, budget_fraction: float) -> str:
        began = time.perf_counter()
        time.sleep(1)
        message = chosen(state, budget_fraction)
        spent.append(time.perf_counter() - began)
        return message

    monkeypatch.setattr(bit_allocation, "choose_bits", slowly)
    settings = {"train.steps": 8, "quant.budget_bytes": 10**6, "quant.budget_after": 0.5}
    began = time.perf_counter()
    seconds = train(with_settings(small, settings), tmp_path / "run")["seconds"]
    assert len(spent) == 2
    assert seconds < time.perf_counter() - began - sum(spent)


def test_predicted_increase_is_the_rise_of_the_loss(small: Run) -> None:
    """With one weight rounded to 2 bits, the loss rises by about the predicted loss increase."""
    state = opened(with_settings(small, {"quant.qat_fraction": 0.0, "quant.budget_bytes": 10**9}))
    trainer = Trainer(state)
    for _ in range(150):
        trainer.train_step(0.5)
    options = bit_allocation.measure_options(state, 0.5)
    predicted = {name: given[0].loss_increase for name, given in options.items()}
    assert all(a.loss_increase > b.loss_increase for given in options.values() for a, b in itertools.pairwise(given))
    rise = {name: _loss(state, name) - _loss(state, "") for name in predicted}
    order = torch.tensor(list(predicted.values())).argsort().argsort().double()
    found = torch.tensor(list(rise.values())).argsort().argsort().double()
    assert torch.corrcoef(torch.stack([order, found]))[0, 1] > 0.7  # Spearman's rank correlation
    ratios = torch.tensor([rise[name] / predicted[name] for name in predicted])
    assert 0.5 < ratios.median() < 2.0


def _loss(state: TrainState, rounded: str) -> float:
    """The loss on a fixed text with the weight `rounded` at 2 bits and all others unrounded."""
    model = state.model.train()
    held = {}
    for name, weight in bit_allocation.adjustable_weights(state).items():
        if name == rounded:
            held[name] = weight.master.data
            quantizer = IntQuantizer(2)
            weight.master.data = quantizer.decode(quantizer.encode(held[name]), tuple(held[name].shape))
    ids = torch.from_numpy(state.corpus.train.read(0, 64 * 33).astype("int64")).reshape(64, 33)
    with torch.no_grad():
        loss = model.loss(model(ids[:, :-1])[0], ids[:, 1:], 0.0).ce.item()
    for name, weight in bit_allocation.adjustable_weights(state).items():
        if name in held:
            weight.master.data = held[name]
    return loss


@pytest.mark.slow
def test_without_qat_bits_are_chosen_when_packing(small: Run, tmp_path: Path) -> None:
    summary = train(with_settings(small, {"quant.qat_fraction": 0.0}), tmp_path / "run")
    assert summary["artifact_bytes"] <= BUDGET
    assert [step for step, what in events(tmp_path / "run") if what.startswith("bits chosen")] == [8]


def test_given_bits_are_kept_and_lowered_only_to_fit(small: Run, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "quant.bit_allocation": ["embed_proj.weight=8", "blocks.0.mlp.up.weight=8"],
        "quant.bits": 8,
    }
    roomy = train(with_settings(small, given | {"quant.budget_bytes": 10**6}), tmp_path / "roomy")
    assert roomy["bit_allocation"] == {"embed_proj.weight": 8, "blocks.0.mlp.up.weight": 8}
    assert not any("bits" in what for _, what in events(tmp_path / "roomy"))
    tight = train(with_settings(small, given), tmp_path / "tight")
    assert tight["artifact_bytes"] <= BUDGET < roomy["artifact_bytes"]
    assert any("bits were lowered after training" in what for _, what in events(tmp_path / "tight"))
    assert not any("bits chosen" in what for _, what in events(tmp_path / "tight"))


def test_a_budget_that_nothing_fits_is_refused_before_training(small: Run, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"quant\.budget_bytes = 2,000: with 2 bits for every weight"):
        train(with_settings(small, {"quant.budget_bytes": 2000}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_weights_with_fixed_bits_count_before_training(small: Run, tmp_path: Path) -> None:
    """An FP8 embedding of 4,096 values alone takes 3,400 bytes or more."""
    settings = {"quant.embedding": "fp8", "quant.budget_bytes": 6_000}
    with pytest.raises(
        UserError, match=r"quant\.budget_bytes = 6,000: .* weights and tokenizer take about [67],\d\d\d"
    ):
        train(with_settings(small, settings), tmp_path / "run")


def test_a_checkpoint_of_impossible_bits_is_refused(small: Run) -> None:
    state = opened(small)
    for bad in ({"nothing": 4}, {"embed_proj.weight": 9}, {"embed_proj.weight": "x"}, ["embed_proj.weight"], 3):
        metadata = json.loads(json.dumps({**state.metadata(), "bit_allocation": bad}))
        with pytest.raises(UserError):
            state.restore(state.tensors(), metadata)


def test_a_budget_without_bits_to_choose_is_refused_before_training(small: Run, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no weight with an integer quantizer has quant\.large = 1,000,000 values"):
        train(with_settings(small, {"quant.large": 1_000_000}), tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/*"))
