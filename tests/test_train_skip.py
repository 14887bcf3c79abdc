"""A step whose loss or gradient is not finite is skipped, undone, counted and reported. Too many end the run."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jepamba.data import corpus
from jepamba.errors import UserError
from jepamba.jepa import LatentWeights
from jepamba.train import resolve, resume, train
from jepamba.train import step as step_module
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer
from processes import losses, records
from tiny import text_file, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


NAN_WEIGHTS = LatentWeights(0.1, math.nan)


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """Make λ, and with it the loss and all gradients, NaN in these steps of every state, counted from 1."""
    original, calls = Trainer.train_step, {"step": 0}
    weights = step_module.latent_weights

    def stepped(trainer: Trainer, progress: float) -> dict[str, float]:
        calls["step"] = trainer.state.counters.step + 1
        return original(trainer, progress)

    monkeypatch.setattr(Trainer, "train_step", stepped)
    monkeypatch.setattr(
        step_module, "latent_weights", lambda *given: NAN_WEIGHTS if calls["step"] in steps else weights(*given)
    )


BATCH_NORM = {"jepa__projector": "mlp-batchnorm"}


@pytest.mark.parametrize("settings", [{}, BATCH_NORM], ids=["plain", "batch norm"])
def test_nothing_of_a_bad_step_is_left(text: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]) -> None:
    """The content of a checkpoint is unchanged bit for bit, and the next step is not affected."""
    run = tiny(text, **settings)
    tokens = corpus(run.data)
    state = TrainState(resolve(run, tokens), tokens, choose_device(run.train))
    trainer = Trainer(state)
    trainer.train_step(0.0)
    before, position = {name: value.clone() for name, value in state.tensors().items()}, state.loader.state()
    weights = step_module.latent_weights
    monkeypatch.setattr(step_module, "latent_weights", lambda *given: NAN_WEIGHTS)
    with pytest.raises(NotFiniteError, match=r"step 2: the loss is nan .* the 4 windows from window 4 of epoch 0 on"):
        trainer.train_step(0.0)
    monkeypatch.setattr(step_module, "latent_weights", weights)
    after = state.tensors()
    assert after.keys() == before.keys()
    for name, value in after.items():
        assert torch.equal(value, before[name]), name
    assert all(p.grad is None or not p.grad.any() for p in state.parameters())
    assert state.loader.state()["position"] == position["position"] + 4
    assert (state.counters.step, state.counters.skipped, state.counters.tokens) == (2, 1, 2 * 128)
    assert math.isfinite(trainer.train_step(0.0)["loss"])


def test_a_run_leaves_bad_steps_out_and_says_which(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny(text, train__steps=10, train__checkpoint_every=1, train__keep_checkpoints=20)
    train(run, tmp_path / "clean")
    poison(monkeypatch, 4, 8)
    summary = train(run, tmp_path / "out")
    assert (summary["steps"], summary["skipped"], summary["tokens"]) == (10, 2, 10 * 128)
    done, clean = losses(tmp_path / "out"), losses(tmp_path / "clean")
    assert [record["step"] for record in done] == [1, 2, 3, 5, 6, 7, 9, 10]
    assert [record["skipped"] for record in done] == [0, 0, 0, 1, 1, 1, 2, 2]
    assert done[:3] == clean[:3]
    # The data of a step that was left out is behind the run, as it is for the run without one.
    assert all(record[key] == clean[record["step"] - 1][key] for record in done for key in ("tokens", "bytes", "epoch"))
    said = [
        record["what"] for record in records(tmp_path / "out", "event") if "the update was skipped" in record["what"]
    ]
    assert [line.partition(":")[0] for line in said] == ["step 4", "step 8"]
    assert "on the 4 windows from window 12 of epoch 0 on" in said[0]
    assert "(2 skipped steps, train.skip_limit = 10)" in capsys.readouterr().err
    # None right after a bad step, whose reason may lie in the weights.
    kept = [load_checkpoint(path)[1]["counters"] for path in checkpoints(tmp_path / "out" / "checkpoints")]
    assert [(progress["step"], progress["skipped"]) for progress in kept] == [
        (step, (step > 4) + (step > 8)) for step in range(1, 11) if step not in (4, 8)
    ]


def test_a_resumed_run_remembers_what_was_left_out(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(text, train__steps=10, train__checkpoint_every=6)
    poison(monkeypatch, 3, 9)
    train(run, tmp_path / "out")
    whole = losses(tmp_path / "out")
    last = checkpoints(tmp_path / "out" / "checkpoints")[-1]
    for file in last.iterdir():
        file.unlink()
    last.rmdir()
    assert resume(tmp_path / "out")["skipped"] == 2
    assert losses(tmp_path / "out") == whole


def test_one_more_than_the_limit_ends_the_run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny(text, train__steps=20, train__skip_limit=2)
    poison(monkeypatch, 2, 5, 7, 9)
    with pytest.raises(
        UserError, match=r"step 7: the loss is nan .*; 3 skipped steps are more than train.skip_limit = 2"
    ):
        train(run, tmp_path / "out")
    assert [record["step"] for record in records(tmp_path / "out")] == [1, 3, 4, 6]
    for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines():
        # JSON that strict readers read: no NaN in it.
        json.loads(line, parse_constant=lambda name: pytest.fail(name))


@pytest.mark.parametrize(
    "bad",
    [pytest.param((1,), marks=pytest.mark.slow), (2,), pytest.param((1, 2), marks=pytest.mark.slow)],
    ids=["first", "second", "both"],
)
def test_a_bad_ghost_step_is_left_out_too(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: tuple[int, ...]
) -> None:
    """The run counts it and continues, also when it is resumed before its first checkpoint."""
    calls, weights = list[int](), step_module.latent_weights

    def poisoned(*given: Any) -> LatentWeights | None:
        calls.append(1)
        return NAN_WEIGHTS if len(calls) in bad else weights(*given)

    monkeypatch.setattr(step_module, "latent_weights", poisoned)
    run = tiny(text, optim__ghost_steps=2, train__steps=3, **BATCH_NORM)
    out = tmp_path / "out"
    assert (train(run, out)["steps"], len(calls)) == (3, 5)
    whole = losses(out)
    assert [(record["step"], record["skipped"]) for record in whole] == [(n, len(bad)) for n in (1, 2, 3)]
    said = [record["what"] for record in records(out, "event") if "the update was skipped" in record["what"]]
    assert [line.partition(":")[0] for line in said] == [f"ghost step {n}" for n in bad]
    shutil.rmtree(out / "checkpoints")
    calls.clear()
    assert resume(out)["skipped"] == len(bad)
    assert losses(out) == whole


def test_too_many_bad_ghost_steps_end_the_run(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_module, "latent_weights", lambda *given: NAN_WEIGHTS)
    run = tiny(text, optim__ghost_steps=4, train__skip_limit=2)
    with pytest.raises(UserError, match=r"ghost step 3: .*; 3 skipped steps are more than train.skip_limit = 2"):
        train(run, tmp_path / "out")
