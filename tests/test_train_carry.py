"""Truncated back-propagation through time: each window starts where the window before it in the text ended."""

from __future__ import annotations

from pydoc_data import topics
from typing import Any

import pytest
import torch

from jepamba.config import ConfigError, Run, from_dict, with_settings
from jepamba.data import corpus
from jepamba.errors import UserError
from jepamba.model import State
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.measure import term_gradients
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Four rows of windows of 16 bytes, three micro-batches a step, nothing but the cross-entropy."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "topics.txt"
    text.write_text("\0".join(body[:60] for _, body in sorted(topics.topics.items())[:70]))
    return from_dict(
        {
            "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 16, "cache": str(folder / "cache")}
            | {"shuffle": False},
            "model": {
                "embed_dim": 8,
                "d_model": 16,
                "n_layer": 2,
                "headdim": 8,
                "d_state": 4,
                "chunk_size": 8,
                "mlp_mult": 1.0,
            },
            "jepa": {"weight": 0.0, "sigreg_weight": 0.0},
            "optim": {"grad_clip": 0.0},
            "quant": {"qat_fraction": 0.0},
            "train": {"steps": 9, "tokens_per_step": 192, "tokens_per_micro": 64, "carry_state": True, "threads": 1}
            | {"precision": "fp32"},
        }
    )


def state_of(run: Run, **settings: Any) -> TrainState:
    run = with_settings(run, {name.replace("__", "."): value for name, value in settings.items()})
    text = corpus(run.data)
    return TrainState(resolve(run, text), text, choose_device(run.train))


def step_of(state: TrainState) -> dict[str, float]:
    return Trainer(state).train_step(0.0)


def stretches(state: TrainState, start: int, windows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs and targets (rows, windows · sequence) from window `start` of every stretch on, read by hand."""
    tokens, seq_len = state.corpus.train, state.run.data.seq_len
    rows = state.run.train.tokens_per_micro // seq_len
    each = (len(tokens) - 1) // seq_len // rows
    found = []
    for row in range(rows):
        first = (row * each + start) * seq_len
        found.append(torch.from_numpy(tokens.read(first, first + windows * seq_len + 1).astype("int64")))
    both = torch.stack(found)
    return both[:, :-1], both[:, 1:]


def ce_of(state: TrainState, inputs: torch.Tensor, targets: torch.Tensor, carried: State | None) -> tuple[Any, State]:
    reset = inputs == 0 if state.run.data.reset else None
    h, carried = state.model(inputs, reset, carried)
    return state.model.loss(h, targets, state.run.jepa.z_loss), carried


@pytest.mark.parametrize("reset", [True, False])
def test_a_step_reads_its_stretches_as_if_they_were_one_window(run: Run, reset: bool) -> None:
    state = state_of(run, data__reset=reset)
    state.model.train()
    inputs, targets = stretches(state, 0, 3)
    assert (inputs == 0).any(), "no document starts here: resets would not be tested"
    expected, after = ce_of(state, inputs, targets, None)
    assert step_of(state)["ce"] == pytest.approx(float(expected.ce), rel=1e-5)
    assert state.carried is not None
    for kept, carried in zip(state.carried, after, strict=True):
        for value, wanted in zip(kept, carried, strict=True):
            assert torch.allclose(value, wanted, atol=1e-5)
            assert value.abs().max() > 0
            assert not value.requires_grad


def test_the_state_crosses_steps_and_the_gradient_does_not_cross_windows(run: Run) -> None:
    state, twin = state_of(run), state_of(run)
    carried: State | None = None
    for step in range(3):
        twin.model.load_state_dict(state.model.state_dict())
        twin.model.train()
        twin.model.zero_grad()
        total = 0.0
        for micro in range(3):
            losses, carried = ce_of(twin, *stretches(twin, 3 * step + micro, 1), carried)
            (losses.total / 3).backward()
            total += float(losses.ce) / 3
            carried = [type(block)(*(value.detach() for value in block)) for block in carried]
        norm = torch.stack([p.grad.norm() for p in twin.model.parameters() if p.grad is not None]).norm()
        record = step_of(state)
        assert record["ce"] == pytest.approx(total, rel=1e-5)
        assert record["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_without_it_every_window_starts_empty(run: Run) -> None:
    carrying, plain = state_of(run), state_of(run, train__carry_state=False)
    assert plain.carried is None
    assert step_of(carrying)["ce"] != step_of(plain)["ce"]


def test_an_epoch_starts_empty(run: Run) -> None:
    """What is carried into an epoch's first step makes no difference, and into any other it does."""
    state = state_of(run)
    start = state.loader.state()
    first, last = {"epoch": 1, "position": 0}, {"epoch": 0, "position": state.loader.loader.windows}
    for position, matters in ((first, False), (last, False), ({"epoch": 1, "position": 4}, True)):
        losses = []
        for nonsense in (0.0, 5.0):
            other = state_of(run)
            other.loader.restore(start | position)
            assert other.carried is not None
            for block in other.carried:
                for value in block:
                    value.fill_(nonsense)
            losses.append(step_of(other)["ce"])
        assert (losses[0] != losses[1]) is matters


def test_measuring_the_terms_leaves_the_state(run: Run) -> None:
    state = state_of(run)
    step_of(state)
    assert state.carried is not None
    before = [value.clone() for block in state.carried for value in block]
    position = state.loader.state()
    assert term_gradients(state, 0.0)["grad_ce"] > 0
    assert all(torch.equal(a, b) for a, b in zip(before, (v for block in state.carried for v in block), strict=True))
    assert state.loader.state() == position


def test_a_checkpoint_holds_the_state(run: Run) -> None:
    state = state_of(run)
    for _ in range(2):
        step_of(state)
    tensors = {name: value.clone() for name, value in state.tensors().items()}
    metadata = state.metadata()
    expected = [step_of(state) for _ in range(4)]
    assert sum(name.startswith("carried/") for name in tensors) == 4
    other = state_of(run)
    other.restore(tensors, metadata)
    assert [step_of(other) for _ in range(4)] == expected
    # An empty state instead would be another run.
    emptied = {name: torch.zeros_like(v) if name.startswith("carried/") else v for name, v in tensors.items()}
    other = state_of(run)
    other.restore(emptied, metadata)
    assert step_of(other)["ce"] != expected[0]["ce"]
    missing = {name: value for name, value in tensors.items() if name != "carried/1.ssm_BHPN"}
    with pytest.raises(UserError, match="does not fit"):
        state_of(run).restore(missing, metadata)
    short = tensors | {"carried/1.ssm_BHPN": tensors["carried/1.ssm_BHPN"][:1]}
    with pytest.raises(UserError, match=r"carried state 1.ssm_BHPN has shape"):
        state_of(run).restore(short, metadata)


def test_senseless_combinations_are_refused(run: Run) -> None:
    with pytest.raises(ConfigError, match=r"train.carry_state.*data.shuffle = false"):
        with_settings(run, {"data.shuffle": True})
    with pytest.raises(UserError, match=r"too few for 512 parallel streams.*tokens_per_micro"):
        state_of(run, train__tokens_per_step=8192, train__tokens_per_micro=8192)
