"""Faults of a run on several processes: one dies, one fails, one receives a signal, one has another clock."""

from __future__ import annotations

import itertools
import signal
import time
from pathlib import Path

import pytest

from processes import Running, losses, records, seen
from ranks_faulted import kill_one, terminate_one
from tiny import preset, text_file, tiny

STEPS, EVERY = 16, 3


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run of two processes in `out`; their logs are beside it."""
    folder = tmp_path_factory.mktemp("whole")
    run = tiny(text, train__steps=STEPS, train__checkpoint_every=EVERY)
    assert Running(["train", preset(folder, run), "--out", str(folder / "out")], folder, 2).wait() == [0, 0]
    return folder


@pytest.mark.parametrize("dead", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_rank_that_is_killed_ends_the_other_and_the_run_resumes_exactly(
    whole: Path, tmp_path: Path, dead: int
) -> None:
    out = tmp_path / "out"
    running = Running(["train", str(whole / "tiny.toml"), "--out", str(out)], tmp_path, 2)
    kill_one(running, out, dead, lines=9)
    assert Running(["resume", str(out)], tmp_path, 2).wait() == [0, 0]
    assert losses(out) == losses(whole / "out")
    assert seen(tmp_path) == seen(whole)
    assert len(seen(whole)) == STEPS


@pytest.mark.slow
def test_all_killed_at_once_then_resumed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    running = Running(["train", str(whole / "tiny.toml"), "--out", str(out)], tmp_path, 2)
    running.wait_for(out / "metrics.jsonl", lines=13)
    running.signal(signal.SIGKILL)
    assert running.wait() == [-signal.SIGKILL] * 2
    assert Running(["resume", str(out)], tmp_path, 2).wait() == [0, 0]
    assert losses(out) == losses(whole / "out")
    assert seen(tmp_path) == seen(whole)


@pytest.mark.parametrize("bad", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_rank_that_fails_says_why_and_ends_the_other(whole: Path, tmp_path: Path, bad: int) -> None:
    words = ["train", str(whole / "tiny.toml"), "--out", str(tmp_path / "out")]
    running = Running(words, tmp_path, 2, environment={"BAD": str(bad)}, setup="faulty:bad_disk", agent=True)
    assert running.wait(60) == [2, 2]
    reason = "/data/text_train_000003.bin: the shard can no longer be read (Input/output error)"
    assert running.last_words(bad) == f"jepamba: {reason}"
    assert running.last_words(1 - bad).startswith("jepamba: another rank failed, was killed or does not answer")


@pytest.mark.parametrize("signaled", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_signal_to_one_rank_ends_all_with_a_checkpoint(whole: Path, tmp_path: Path, signaled: int) -> None:
    out = tmp_path / "out"
    running = Running(["train", str(whole / "tiny.toml"), "--out", str(out)], tmp_path, 2)
    terminate_one(running, out, signaled, lines=7)
    if signaled == 1:
        assert Running(["resume", str(out)], tmp_path, 2).wait() == [0, 0]
        assert losses(out) == losses(whole / "out")
        assert seen(tmp_path) == seen(whole)


@pytest.mark.slow
def test_a_rank_stopped_by_a_signal_does_not_wait_for_python_to_end(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["train", str(whole / "tiny.toml"), "--out", str(out)]
    with Running(words, tmp_path, 2, setup="faulty:slow_to_end", fresh=True) as running:
        terminate_one(running, out, 0, lines=7)


def test_a_budget_in_seconds_follows_the_clock_of_rank_0(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = tiny(text, train__steps=0, train__seconds=1.0)
    started = time.monotonic()
    running = Running(
        ["train", preset(tmp_path, run), "--out", str(out)], tmp_path, 2, setup="faulty:fast_clock_on_rank_1"
    )
    assert running.wait() == [0, 0]
    assert time.monotonic() - started > 1.0
    steps = records(out)
    longest = max(after["seconds"] - before["seconds"] for before, after in itertools.pairwise(steps))
    assert 1.0 <= steps[-1]["seconds"] <= 1.0 + max(longest, 0.5)
