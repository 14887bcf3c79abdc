"""One of two GPUs that train together over NCCL, with sums in captured graphs: killed, stopped, told to stop."""

from __future__ import annotations

from pathlib import Path

import pytest
from small import small_run

from jepamba.data import corpus
from jepamba.train.checkpoint import checkpoints
from needs_gpus import needs_gpus
from processes import Running, records, seen
from ranks_faulted import kill_one, stop_one, terminate_one
from tiny import preset

pytestmark = [
    *needs_gpus(2),
    pytest.mark.filterwarnings("default"),
]

STEPS, EVERY, REACHED = 400, 50, 120
"""Steps of the run, steps between checkpoints, and the lines of its log after which something happens to it."""
SETTINGS = {
    # All windows of a step in one pass, on one GPU as on two: SIGReg has the same sample.
    "train.tokens_per_micro": 4096,
    "train.tokens_per_step": 4096,
    "train.steps": STEPS,
    "train.val_every": 0,
    "train.checkpoint_every": EVERY,
    "train.checkpoint_seconds": 0.0,
    "eval.stride": 0,
    "eval.calibrate_tokens": 4096,
    "eval.diagnostics_tokens": 4096,
    "eval.sample_tokens": 4,
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of two GPUs that nothing befell: in `out`, and its preset and what was seen beside it."""
    folder = tmp_path_factory.mktemp("whole")
    run = small_run(tmp_path_factory.mktemp("cache"), SETTINGS)
    corpus(run.data)
    words = ["train", preset(folder, run), "--out", str(folder / "out")]
    with Running(words, folder, 2, fresh=True) as running:
        assert running.wait(150) == [0, 0], [running.output(rank) for rank in range(2)]
    return folder


def started(whole: Path, folder: Path, timeout: int = 300) -> Running:
    """The same run anew, with all that it leaves in `folder`."""
    words = ["train", str(whole / "tiny.toml"), "--out", str(folder / "out")]
    return Running(words, folder, 2, {"JEPAMBA_COLLECTIVE_TIMEOUT": str(timeout)}, fresh=True)


def test_a_rank_that_is_killed_ends_the_other_and_one_gpu_goes_on(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with started(whole, tmp_path) as running:
        kill_one(running, out, 1, REACHED, in_graphs=True)
    newest = int(checkpoints(out / "checkpoints")[-1].name.removeprefix("step-"))
    reached = records(out)[-1]["step"]
    assert 0 < newest <= reached < STEPS
    with Running(["resume", str(out)], tmp_path / "alone", fresh=True) as running:
        assert running.wait(150) == [0], running.output()

    # The very windows of each step, whoever read them, and none of another step.
    truth, before, after = seen(whole), seen(tmp_path), seen(tmp_path / "alone")
    assert list(after) == list(range(newest + 1, STEPS + 1))
    for step in range(1, STEPS + 1):
        assert sorted((before if step <= newest else after)[step]) == sorted(truth[step]), step
    ours, theirs = records(out), records(whole / "out")
    assert [record["step"] for record in ours] == list(range(1, STEPS + 1))
    for a, b in zip(ours, theirs, strict=True):
        assert (a["tokens"], a["bytes"], a["epoch"]) == (b["tokens"], b["bytes"], b["epoch"])
    # Rounding differs, and grows from step to step: not so much that the curves part.
    last = [sum(record["ce"] for record in found[-50:]) for found in (ours, theirs)]
    assert last[0] == pytest.approx(last[1], rel=5e-2)
    assert (out / "artifact.jepa").is_file()


def test_a_rank_that_stands_still_is_not_waited_for(whole: Path, tmp_path: Path) -> None:
    with started(whole, tmp_path, timeout=20) as running:
        stop_one(running, tmp_path / "out", 1, REACHED, seconds=60)


def test_a_signal_to_one_rank_ends_both_with_a_checkpoint(whole: Path, tmp_path: Path) -> None:
    with started(whole, tmp_path) as running:
        terminate_one(running, tmp_path / "out", 1, REACHED)
