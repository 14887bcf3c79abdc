"""The micro-batches of a step add up to the step, and one can be copied into another, as a CUDA graph requires."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jepamba.config import with_settings
from jepamba.jepa import LatentWeights, document_pairs
from jepamba.train import step as step_module
from jepamba.train.microbatch import MicroBatches, loss_terms
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer, ghost_warmup
from tiny import opened, text_file, tiny


def state_in(tmp_path: Path) -> TrainState:
    return opened(tiny(text_file(tmp_path), train__tokens_per_micro=64))


def counted(patch: pytest.MonkeyPatch) -> list[int]:
    """Append to the returned list each time that the micro-batches of a training step are made."""
    calls: list[int] = []

    def make(*given: Any, **named: Any) -> MicroBatches:
        calls.append(1)
        return MicroBatches(*given, **named)

    patch.setattr(step_module, "MicroBatches", make)
    return calls


def test_micro_batches_are_the_step(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    batch = state.peek_windows()
    micro_batches = list(MicroBatches(state, batch, LatentWeights(0.1, 0.5)))
    assert len(micro_batches) == state.layout.passes > 1
    assert torch.equal(torch.cat([micro.tokens_BT for micro in micro_batches]), batch.inputs_BT)
    assert torch.equal(torch.cat([micro.targets_BT for micro in micro_batches]), batch.targets_BT)
    weights = [micro.weights for micro in micro_batches]
    assert sum(w.tokens for w in weights) == sum(w.sigreg_share for w in weights) == 1
    assert sum(w.sigreg_lambda for w in weights) == 0.5
    assert all(w.jepa == pytest.approx(0.1) for w in weights)
    # The directions and the positions are drawn anew for every micro-batch.
    first, second = (micro.projections for micro in micro_batches[:2])
    assert first is not None
    assert second is not None
    assert not torch.equal(first.directions_EM, second.directions_EM)


def test_one_is_copied_over_another(tmp_path: Path) -> None:
    first, second = list(MicroBatches(state_in(tmp_path), state_in(tmp_path).peek_windows(), LatentWeights(0.1, 0.5)))[
        :2
    ]
    static = first.map(torch.clone)
    places = [value.data_ptr() for value in static.tensors()]
    # Tokens, targets, resets, directions, and seven weights; positions too where a part of them is tested.
    assert len(places) in (11, 12)
    static.copy_(second)
    assert [value.data_ptr() for value in static.tensors()] == places
    for copied, theirs in zip(static.tensors(), second.tensors(), strict=True):
        assert torch.equal(copied, theirs)
    assert not torch.equal(static.tokens_BT, first.tokens_BT)


def test_those_of_a_later_step_are_what_that_step_would_make(tmp_path: Path) -> None:
    state, latent = state_in(tmp_path), LatentWeights(0.1, 0.5)
    ahead = list(MicroBatches(state, state.peek_windows(), latent, step=5))
    now = list(MicroBatches(state, state.peek_windows(), latent))
    state.counters.step = 5
    then = list(MicroBatches(state, state.peek_windows(), latent))
    for first, second in zip(ahead, then, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first.tensors(), second.tensors(), strict=True))
    assert ahead[0].projections is not None
    assert now[0].projections is not None
    assert not torch.equal(ahead[0].projections.directions_EM, now[0].projections.directions_EM)


PREPARED = [
    {},
    {"jepa.until": 0.5},
    {"optim.ghost_steps": 2, "jepa.balance": 0.5},
    {"jepa.sigreg_sample": "step", "jepa.sigreg_samples": 20},
    {"train.tokens_per_step": 64},
]


@pytest.mark.parametrize("settings", PREPARED, ids=lambda settings: "+".join(settings) or "default")
def test_steps_with_prepared_micro_batches_are_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    """On a GPU a step prepares the next one. Here it does so on the CPU, with a skipped step and restored states."""
    run, found, made = with_settings(tiny(text_file(tmp_path), train__tokens_per_micro=64), settings), [], []
    for prepare in (False, True):
        with monkeypatch.context() as patch:
            trainer = Trainer(opened(run))
            trainer.graphs = prepare
            made.append(counted(patch))
            ghost_warmup(trainer, lambda problem: None)
            records = [trainer.train_step(step / 8) for step in range(3)]
            with patch.context() as broken:
                broken.setattr(step_module, "weighted_terms", lambda *given: {"ce": math.nan})
                with pytest.raises(NotFiniteError):
                    trainer.train_step(3 / 8)
            records += [trainer.train_step(step / 8) for step in range(4, 8)]
            found.append((records, trainer.state.tensors()))
    (expected, weights), (records, others) = found
    assert records == expected
    assert all(torch.equal(value, others[name]) for name, value in weights.items())
    # A prepared step makes its micro-batches once too. Not used: those after the last step, after ghost steps, and
    # those with latent terms for the first step without.
    assert 0 < len(made[1]) - len(made[0]) <= 3


def test_a_single_micro_batch_counts_its_pairs_itself(tmp_path: Path) -> None:
    state = opened(tiny(text_file(tmp_path), train__tokens_per_step=64, train__tokens_per_micro=64))
    batches = MicroBatches(state, state.peek_windows(), LatentWeights(0.1, 0.5))
    (micro,) = batches
    assert micro.weights.pairs_K is None
    shape = (len(micro.tokens_BT), state.run.data.seq_len)
    counted_K = document_pairs(state.run.jepa, shape, micro.reset_BT, state.device)
    with_counts = replace(micro, weights=micro.weights._replace(pairs_K=counted_K))
    own, given = (loss_terms(state, each).jepa.item() for each in (micro, with_counts))
    assert own > 0
    assert own == pytest.approx(given, rel=1e-6)


def test_without_latent_terms_nothing_is_made_for_them(tmp_path: Path) -> None:
    state = state_in(tmp_path)
    for micro in MicroBatches(state, state.peek_windows(), None):
        assert not micro.latent_terms
        assert micro.projections is None
        assert micro.weights.pairs_K is None
        assert micro.weights.jepa == micro.weights.sigreg_lambda == 0
