"""The target encoder (`jepa.target_ema`): an average over the steps, whose latents the predictor predicts."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch

from jepamba.jepa import prediction_error
from jepamba.train.step import Trainer
from tiny import opened, text_file, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("masters", ["fp32", "bf16"])
def test_its_weights_are_the_average_over_the_steps(text: Path, masters: str) -> None:
    state = opened(tiny(text, jepa__target_ema=0.7, train__masters=masters))
    trainer = Trainer(state)
    assert state.target_encoder is not None
    names = [n for n, _ in state.modules.named_parameters() if n.startswith(("model.", "heads.projector."))]
    average = {name: p.detach().double() for name, p in state.modules.named_parameters() if name in names}
    for step in range(4):
        trainer.train_step(step / 8)
        for name, p in state.modules.named_parameters():
            if name in names:
                average[name] = 0.7 * average[name] + 0.3 * p.detach().double()
    own = {f"model.{name}": p for name, p in state.target_encoder.model.named_parameters()}
    own |= {f"heads.projector.{name}": p for name, p in state.target_encoder.projector.named_parameters()}
    assert own.keys() == average.keys()
    for name, p in own.items():
        assert p.dtype == torch.float32
        torch.testing.assert_close(p.double(), average[name], rtol=1e-5, atol=1e-7)


def test_it_is_not_trained_and_not_rounded(text: Path) -> None:
    state = opened(tiny(text, jepa__target_ema=0.99, quant__qat_fraction=1.0))
    assert state.target_encoder is not None
    Trainer(state).train_step(0.0)
    assert state.model.fake_quantized
    assert not state.target_encoder.model.fake_quantized
    assert all(p.grad is None and not p.requires_grad for p in state.target_encoder.parameters())
    trained = {id(p) for p in state.parameters()}
    assert not trained & {id(p) for p in state.target_encoder.parameters()}


@pytest.mark.parametrize("layer", [0, 1])
def test_the_error_is_that_to_the_latents_of_the_average(text: Path, layer: int) -> None:
    fp32 = {"train__precision": "fp32", "jepa__sigreg_weight": 0.0, "quant__qat_fraction": 0.0}
    run = tiny(text, jepa__target_ema=0.9, jepa__layer=layer, **fp32)
    state = opened(run)
    trainer = Trainer(state)
    for step in range(3):
        trainer.train_step(step / 8)
    model, heads, encoder = (deepcopy(m) for m in (state.model, state.heads, state.target_encoder))
    assert heads is not None
    assert encoder is not None
    batch = state.peek_windows()
    errors = []
    with torch.no_grad():
        z = heads.latents(model.activations(batch.inputs_BT, batch.reset_BT)[0])
        for owner, projector in ((encoder.model, encoder.projector), (model, heads.projector)):
            targets = projector(owner.activations(batch.inputs_BT, batch.reset_BT)[0].after(layer))
            errors.append(float(prediction_error(heads.step, run.jepa, z, batch.reset_BT, targets_BTE=targets)))
    of_the_average, of_the_model = errors
    assert of_the_average != pytest.approx(of_the_model, rel=1e-2)
    assert trainer.train_step(3 / 8)["jepa"] == pytest.approx(of_the_average, rel=1e-4)


def test_equal_weights_give_the_gradients_of_detached_targets(text: Path) -> None:
    """At the first step the average is the model itself. Its pass without gradients may round otherwise."""
    found = []
    for settings in ({"jepa__target_ema": 0.9}, {"jepa__detach_targets": True}):
        state = opened(tiny(text, **settings, quant__qat_fraction=0.0))
        record = Trainer(state).train_step(0.0)
        found.append((record, [p.detach().clone() for p in state.parameters()]))
    (ours, weights), (detached, theirs) = found
    assert ours == pytest.approx(detached, rel=1e-6)
    for a, b in zip(weights, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
