"""The end of the latent terms (`jepa.until`): from then on a step is one of plain language modelling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.config import with_settings
from jepamba.jepa import JepaHeads
from jepamba.train.measure import term_gradients
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from tiny import opened, text_file, tiny

OFF = {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "jepa.until": 1.0, "jepa.anneal": False}


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


def stepped(trainer: Trainer, *steps: int) -> list[dict[str, float]]:
    return [trainer.train_step(step / 8) for step in steps]


def tensors_of(state: TrainState) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.tensors().items()}


def no_call(*_: Any) -> Tensor:
    raise AssertionError("the heads were called")


@pytest.mark.parametrize(
    "settings",
    [{}, {"jepa__anneal": True, "jepa__sigreg_sample": "step", "jepa__projector": "mlp-batchnorm"}],
    ids=["plain", "annealed, one sample"],
)
def test_the_steps_after_it_are_those_of_a_run_without_heads(
    text: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    run = tiny(text, jepa__until=0.5, **settings)
    state = opened(run)
    trainer = Trainer(state)
    for record in stepped(trainer, 0, 1, 2, 3):
        assert record["jepa"] > 0
        assert record["sigreg"] > 0
        assert record["jepa_weight"] > 0
        assert record["lambda"] > 0
    before, metadata = tensors_of(state), state.metadata()
    assert any(".heads." in name or "/heads." in name for name in before)
    plain = opened(with_settings(run, OFF))
    plain.restore({name: value for name, value in before.items() if "heads." not in name}, metadata)
    monkeypatch.setattr(JepaHeads, "project", no_call)
    ours, theirs = stepped(trainer, 4, 5, 6), stepped(Trainer(plain), 4, 5, 6)
    assert ours == theirs
    assert [(r["jepa"], r["sigreg"], r["jepa_weight"], r["lambda"]) for r in ours] == [(0, 0, 0, 0)] * 3
    after = tensors_of(state)
    for name, value in tensors_of(plain).items():
        assert torch.equal(after[name], value), name
    for name in after.keys() - plain.tensors().keys():
        assert torch.equal(after[name], before[name]), f"{name} has changed"
    norms = term_gradients(state, 0.9)
    assert norms["grad_ce"] > 0
    assert norms["grad_jepa"] == norms["grad_sigreg"] == 0


@pytest.mark.parametrize("step", [2, 4, 5])
def test_a_run_resumes_before_and_after_it(text: Path, step: int) -> None:
    run = tiny(text, jepa__until=0.5, jepa__anneal=True)
    state = opened(run)
    trainer = Trainer(state)
    stepped(trainer, *range(step))
    tensors, metadata = tensors_of(state), state.metadata()
    again = opened(run)
    again.restore(tensors, metadata)
    assert stepped(Trainer(again), *range(step, 7)) == stepped(trainer, *range(step, 7))
    expected = tensors_of(state)
    found = tensors_of(again)
    assert found.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.items())
