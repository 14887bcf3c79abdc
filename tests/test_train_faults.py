"""Faults of real machines in real processes: kills, signals, full disks, damaged shards."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepamba.cli import main
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.stop import StopRequest
from processes import Running, losses, records, seen
from tiny import preset, text_file, tiny

STEPS, EVERY = 40, 4


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def whole(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run in `out`; the logs of its process are beside it."""
    folder = tmp_path_factory.mktemp("whole")
    run = tiny(text, train__steps=STEPS, train__checkpoint_every=EVERY)
    assert Running(["train", preset(folder, run), "--out", str(folder / "out")], folder).wait() == [0]
    return folder


def newest(out: Path) -> int:
    """The step of the newest complete checkpoint, or 0."""
    found = checkpoints(out / "checkpoints")
    if not found:
        return 0
    step: int = load_checkpoint(found[-1])[1]["counters"]["step"]
    return step


def test_kill_9_then_resume_loses_nothing_and_sees_nothing_twice(text: Path, whole: Path, tmp_path: Path) -> None:
    """The run is killed at random moments. `make faults` does so twenty times, and with several ranks."""
    out, moments = tmp_path / "out", random.Random(0)
    words = ["train", str(whole / "tiny.toml"), "--out", str(out)]
    resumed = []
    for kill in range(2):
        running = Running(words, tmp_path)
        running.wait_for(tmp_path / "seen-0.txt", lines=2 + 40 * kill)
        time.sleep(moments.uniform(0, 0.4))
        running.signal(signal.SIGKILL)
        assert running.wait() == [-signal.SIGKILL]
        assert not (out / "summary.json").exists()
        resumed.append(newest(out))
        words = ["resume", str(out)]
    assert Running(words, tmp_path).wait() == [0]
    assert [record["what"] for record in records(out, "event") if "resumed" in record["what"]][-1:] == [
        f"resumed at step {resumed[-1]}"
    ]
    assert losses(out) == losses(whole / "out")
    assert seen(tmp_path) == seen(whole)
    assert len(seen(whole)) == STEPS
    assert (out / "artifact.jepa").read_bytes() == (whole / "out" / "artifact.jepa").read_bytes()


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGTERM, 143),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in ((signal.SIGINT, 130), (signal.SIGHUP, 129))),
    ],
)
def test_a_polite_signal_checkpoints_first(
    text: Path, whole: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    out = tmp_path / "out"
    run = tiny(text, train__steps=STEPS)
    running = Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=6)
    running.signal(number)
    assert running.wait() == [code]
    done = records(out)[-1]["step"]
    assert 4 <= done < STEPS
    assert newest(out) == done
    if number == signal.SIGTERM:
        assert Running(["resume", str(out)], tmp_path).wait() == [0]
        assert losses(out) == losses(whole / "out")
        assert seen(tmp_path) == seen(whole)


def test_nohup_still_ignores_sighup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk: Path) -> Path:
    """Take all the space that is left on `disk`."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                pass
    return ballast


def test_a_disk_that_is_full_for_a_while_costs_checkpoints_alone(
    text: Path, whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    running = Running(["train", str(whole / "tiny.toml"), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=7)
    ballast = fill(small_disk)
    kept = newest(out)
    deadline = time.monotonic() + 60
    while "cannot write the checkpoint (No space left on device)" not in running.output():
        assert time.monotonic() < deadline, running.output()
        time.sleep(0.01)
    assert newest(out) >= kept >= 4
    ballast.unlink()
    assert running.wait() == [0], running.output()
    # Not a step and not a record is missing.
    assert losses(out) == losses(whole / "out")
    events = [record["what"] for record in records(out, "event")]
    assert any("cannot write the checkpoint (No space left on device); training continues" in line for line in events)
    assert newest(out) == STEPS


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_with_a_line(
    text: Path, whole: Path, small_disk: Path, tmp_path: Path
) -> None:
    out = small_disk / "out"
    running = Running(["train", str(whole / "tiny.toml"), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=7)
    ballast = fill(small_disk)
    assert running.wait() == [2]
    last = running.output().splitlines()[-1]
    assert last.startswith("jepamba: ")
    assert "No space left on device" in last
    assert newest(out) >= 4
    ballast.unlink()
    assert Running(["resume", str(out)], tmp_path).wait() == [0]
    assert losses(out) == losses(whole / "out")
    assert seen(tmp_path) == seen(whole)


def test_sigterm_on_a_full_disk_says_where_the_run_goes_on(text: Path, small_disk: Path, tmp_path: Path) -> None:
    out = small_disk / "out"
    run = tiny(text, train__steps=100_000)
    running = Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=7)
    fill(small_disk)
    running.signal(signal.SIGTERM)
    assert running.wait() == [2]
    assert running.output().splitlines()[-1].endswith("the run stops on SIGTERM, there is no checkpoint yet")


@pytest.fixture
def shards(text: Path, tmp_path: Path) -> Path:
    assert main(["data", "build", str(text), "--out", str(tmp_path / "shards"), "--tokenizer", "bytes"]) == 0
    return tmp_path / "shards"


@pytest.mark.parametrize("fate", ["cut short", pytest.param("overwritten", marks=pytest.mark.slow)])
def test_a_shard_that_is_damaged_in_the_middle_ends_the_run_with_its_name(
    text: Path, shards: Path, tmp_path: Path, fate: str
) -> None:
    out = tmp_path / "out"
    run = tiny(shards, train__steps=100_000, train__checkpoint_every=2)
    running = Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=7)
    shard = shards / "text_train_000000.bin"
    good = shard.read_bytes()
    if fate == "cut short":
        os.truncate(shard, 5000)
    else:
        shard.write_bytes(good[:5000] + bytes(len(good) - 5000))
    assert running.wait() == [2]
    last = running.output().splitlines()[-1]
    assert f"{shard}: the shard was changed while it was in use" in last
    # What was trained until then is kept, and with the shard put back it goes on.
    assert newest(out) >= 2
    shard.write_bytes(good)
    (out / "config.toml").write_text((out / "config.toml").read_text().replace("steps = 100000", "steps = 12"))
    assert Running(["resume", str(out)], tmp_path).wait() == [0], running.output()


@pytest.mark.slow
def test_a_shard_that_is_deleted_in_the_middle_is_read_to_the_end(text: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run = tiny(shards, train__steps=30)
    running = Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path)
    running.wait_for(out / "metrics.jsonl", lines=6)
    (shards / "text_train_000000.bin").unlink()
    assert running.wait() == [0], running.output()
    # Who starts or resumes without it is told.
    (out / "summary.json").unlink()
    assert Running(["resume", str(out)], tmp_path).wait() == [2]
    assert "text_train_000000.bin" in running.output().splitlines()[-1]
