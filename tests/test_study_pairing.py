"""The runs of a pair differ in the JEPA settings alone: the same initial backbone and the same windows, bit for bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from jepamba.config import Run, with_settings
from jepamba.data import Corpus, Tokens
from jepamba.presets import load_preset
from jepamba.text import ByteTokenizer
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from tiny import TOPICS

ARMS: dict[str, dict[str, Any]] = {
    "off": {},
    "on": {"jepa.weight": 1.0, "jepa.sigreg_weight": 1.0},
    "predict": {"jepa.weight": 0.1, "jepa.rollout_steps": 3, "jepa.projector": "mlp-batchnorm"},
    "sigreg": {"jepa.sigreg_weight": 1.0, "jepa.sigreg_pool": "timestep", "jepa.sigreg_samples": 0},
    "balanced": {
        "jepa.weight": 1.0,
        "jepa.projector": "none",
        "jepa.balance": 0.1,
        "jepa.action": True,
        "jepa.detach_targets": True,
    },
    "averaged targets": {
        "jepa.weight": 0.1,
        "jepa.target_ema": 0.9,
        "jepa.layer": 1,
        "jepa.stride": 4,
        "jepa.target_tokens": 4,
        "jepa.vicreg_weight": 0.1,
    },
}
STEPS = 6


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    tokenizer = ByteTokenizer()
    ids = np.concatenate(
        [np.array([tokenizer.bos_id, *tokenizer.encode(text[:700])], dtype=np.uint16) for text in TOPICS[:20]]
    )
    return Corpus(Tokens([ids], tokenizer), Tokens([ids[:500]], tokenizer), tokenizer, 500)


def settings(arm: str, seed: int) -> Run:
    tiny = {
        "data.seq_len": 32,
        "model.vocab_size": 256,
        "model.d_model": 32,
        "model.embed_dim": 16,
        "model.n_layer": 2,
        "model.headdim": 16,
        "model.d_state": 8,
        "jepa.sigreg_samples": 32,
        "jepa.sigreg_projections": 8,
        "optim.muon_weight_decay": 0.04,
        "optim.adam_weight_decay": 0.05,
        "train.tokens": 0,
        "train.steps": STEPS,
        "train.tokens_per_step": 256,
        "train.tokens_per_micro": 128,
        "train.seed": seed,
        "train.device": "cpu",
    }
    return with_settings(load_preset("quick"), tiny | ARMS[arm])


def start_and_windows(corpus: Corpus, arm: str, seed: int = 3) -> tuple[dict[str, torch.Tensor], list[torch.Tensor]]:
    """The backbone before the first step, and the windows of `STEPS` steps of training."""
    run = settings(arm, seed)
    state = TrainState(run, corpus, choose_device(run.train))
    assert (state.heads is None) == (arm == "off")
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    trainer, windows = Trainer(state), []
    for step in range(STEPS):
        windows.append(state.peek_windows().inputs_BT.clone())
        trainer.train_step(step / STEPS)
    after = state.model.state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    return before, windows


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm != "off"])
def test_jepa_settings_change_neither_the_initial_backbone_nor_the_windows(corpus: Corpus, arm: str) -> None:
    (weights, windows), (other_weights, other_windows) = (start_and_windows(corpus, name) for name in ("off", arm))
    assert weights.keys() == other_weights.keys()
    for name, value in weights.items():
        assert torch.equal(value, other_weights[name]), name
    assert len(windows) == STEPS
    for a, b in zip(windows, other_windows, strict=True):
        assert torch.equal(a, b)


def test_the_seed_changes_both(corpus: Corpus) -> None:
    (weights, windows), (other_weights, other_windows) = (start_and_windows(corpus, "on", seed) for seed in (3, 4))
    assert any(not torch.equal(value, other_weights[name]) for name, value in weights.items())
    assert not torch.equal(windows[0], other_windows[0])
