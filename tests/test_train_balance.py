"""`jepa.balance`: the latent terms push the kept parameters as hard as a share of the cross-entropy does."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from jepamba.errors import UserError
from jepamba.train import measure
from jepamba.train import step as step_module
from jepamba.train.measure import balance_latent_terms, term_gradients
from jepamba.train.step import Trainer
from tiny import opened, text_file, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("term", "settings"),
    [
        ("jepa", {"jepa__sigreg_weight": 0.0, "jepa__projector": "mlp-batchnorm"}),
        ("sigreg", {"jepa__weight": 0.0}),
        ("vicreg", {"jepa__weight": 0.0, "jepa__sigreg_weight": 0.0, "jepa__vicreg_weight": 3.0}),
    ],
)
def test_the_weighted_gradient_has_the_norm_that_is_asked_for(text: Path, term: str, settings: dict[str, Any]) -> None:
    state = opened(tiny(text, jepa__balance=0.25, jepa__anneal=True, train__precision="fp32", **settings))
    trainer = Trainer(state)
    trainer.train_step(0.0)
    buffers = {name: value.clone() for name, value in state.modules.named_buffers()}
    balance_latent_terms(state, 0.5)
    assert all((value == buffers[name]).all() for name, value in state.modules.named_buffers())
    unannealed = term_gradients(state, 0.0)
    assert unannealed[f"grad_{term}"] == pytest.approx(0.25 * unannealed["grad_ce"], rel=2e-4)
    half = term_gradients(state, 0.5)
    assert half[f"grad_{term}"] == pytest.approx(0.125 * half["grad_ce"], rel=2e-4)


def test_it_keeps_the_ratio_of_the_latent_terms(text: Path) -> None:
    """The factor is one for all: with both terms, each norm is multiplied by it."""
    state = opened(tiny(text, jepa__balance=0.5, train__precision="fp32"))
    before = term_gradients(state, 0.0)
    balance_latent_terms(state, 0.0)
    after = term_gradients(state, 0.0)
    for name in ("jepa", "sigreg"):
        assert after[f"grad_{name}"] == pytest.approx(state.latent_factor * before[f"grad_{name}"], rel=1e-5)
    # The norm of the sum lies between the difference and the sum of the norms.
    least = abs(after["grad_jepa"] - after["grad_sigreg"])
    assert least <= 0.5 * after["grad_ce"] * 1.0001 <= (after["grad_jepa"] + after["grad_sigreg"]) * 1.001


def test_a_run_measures_in_its_steps_and_resumes_between_them(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "BALANCE_EVERY", 3)
    run = tiny(text, jepa__balance=0.25)
    state = opened(run)
    trainer = Trainer(state)
    weights = [trainer.train_step(step / 8)["jepa_weight"] for step in range(4)]
    assert weights[0] == weights[1] == weights[2] != weights[3]
    assert weights[3] == 0.1 * state.latent_factor
    tensors, metadata = {name: value.clone() for name, value in state.tensors().items()}, state.metadata()
    again = opened(run)
    again.restore(tensors, metadata)
    resumed = Trainer(again)
    assert [trainer.train_step(step / 8) for step in (4, 5, 6)] == [resumed.train_step(step / 8) for step in (4, 5, 6)]


def test_a_norm_of_nothing_leaves_the_factor(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened(tiny(text, jepa__balance=0.25, jepa__weight=0.0, jepa__sigreg_ramp=0.5))
    balance_latent_terms(state, 0.0)
    assert state.latent_factor == 1.0
    monkeypatch.setattr(measure, "_gradient_norm", lambda *_: math.nan)
    balance_latent_terms(state, 0.3)
    assert state.latent_factor == 1.0


def test_nothing_is_measured_after_the_latent_terms(text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = opened(tiny(text, jepa__balance=0.25, jepa__until=0.5))
    balance_latent_terms(state, 0.4)
    factor = state.latent_factor
    assert factor != 1.0
    monkeypatch.setattr(measure, "_next_terms", None)
    balance_latent_terms(state, 0.5)
    assert state.latent_factor == factor


@pytest.mark.parametrize("bad", [0.0, -1.0, math.inf, math.nan, "1", True, 1, None])
def test_a_checkpoint_with_an_impossible_factor_is_refused(text: Path, bad: Any) -> None:
    state = opened(tiny(text))
    tensors, metadata = state.tensors(), state.metadata()
    with pytest.raises(UserError, match="latent_factor = "):
        state.restore(tensors, metadata | {"latent_factor": bad})
    del metadata["latent_factor"]
    state.latent_factor = 2.0
    state.restore(tensors, metadata)
    assert state.latent_factor == 1.0
