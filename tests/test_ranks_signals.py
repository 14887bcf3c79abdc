"""Signals to one rank outside its steps: in a validation, while it scores, while it waits."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from jepamba.train.checkpoint import checkpoints
from processes import Running, losses, records
from tiny import preset, text_file, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize(
    ("when", "signaled", "by"),
    [
        ("scoring", 0, signal.SIGTERM),
        pytest.param("scoring", 1, signal.SIGTERM, marks=pytest.mark.slow),
        ("packing", 0, signal.SIGTERM),
        pytest.param("packing", 0, signal.SIGINT, marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_is_terminated_after_the_steps_says_so(
    text: Path, tmp_path: Path, when: str, signaled: int, by: signal.Signals
) -> None:
    words = ["train", preset(tmp_path, tiny(text)), "--out", str(tmp_path / "out")]
    environment = {"SIGNALED_RANK": str(signaled), "SIGNAL": by.name}
    running = Running(words, tmp_path, 2, environment=environment, setup=f"faulty:signal_while_{when}", agent=True)
    codes = running.wait(50)
    assert (codes[signaled], codes[1 - signaled]) == (128 + by, 2)
    reason = "it was sent SIGTERM" if by == signal.SIGTERM else "it was interrupted"
    expected = f"rank 0 ended: {reason}" if when == "packing" else "another rank failed, was killed"
    assert running.last_words(1 - signaled).startswith(f"jepamba: {expected}")


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_signal_in_a_validation_is_answered_soon(text: Path, tmp_path: Path, size: int) -> None:
    """Only the last rank receives the signal, early in the validation. The resumed run validates once."""
    run = tiny(text, train__steps=6, train__val_every=2, train__checkpoint_every=2, eval__tokens_per_batch=64)
    words = ["train", preset(tmp_path, run), "--out"]
    assert Running([*words, str(tmp_path / "whole")], tmp_path / "as whole", size).wait() == [0] * size
    out, batches = tmp_path / "cut", tmp_path / "batches"
    running = Running(
        [*words, str(out)],
        tmp_path / "as cut",
        size,
        environment={"BATCHES": str(batches)},
        setup="faulty:last_rank_is_terminated_while_validating",
    )
    assert running.wait() == [143] * size
    assert batches.read_text().split() == ["0", "1"]
    assert [path.name for path in checkpoints(out / "checkpoints")] == ["step-000000002"]
    assert records(out, "val") == []
    assert Running(["resume", str(out)], tmp_path / "as cut", size).wait() == [0] * size
    assert losses(out) == losses(tmp_path / "whole")
    scored = [[(r["step"], r["bpb"]) for r in records(folder, "val")] for folder in (out, tmp_path / "whole")]
    assert scored[0] == scored[1]
    assert [step for step, _ in scored[0]] == [2, 4, 6]
    # One that came before the checkpoint is not repeated.
    shutil.rmtree(checkpoints(out / "checkpoints")[-1])
    assert Running(["resume", str(out)], tmp_path / "as cut", size).wait() == [0] * size
    assert [(r["step"], r["bpb"]) for r in records(out, "val")] == scored[1]
