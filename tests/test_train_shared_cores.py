"""The message that other programs use the cores: from the kernel's counts, and once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from jepamba.train import shared_cores
from jepamba.train.shared_cores import AFTER_SECONDS, SharedCores


class Clock:
    """`time.monotonic` in the hand of the test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr(shared_cores.time, "monotonic", lambda: self.now)


def counts(tasks: Path, **threads: tuple[int, int]) -> None:
    for name, (ran, waited) in threads.items():
        (tasks / name).mkdir(exist_ok=True)
        (tasks / name / "schedstat").write_text(f"{ran} {waited} 7\n")


@pytest.mark.parametrize(
    ("waited", "expected"),
    [(0, None), (50, None), (1000, "33% of the time for one, so training takes about 1.5 times as")],
)
def test_waiting_threads_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waited: int, expected: str | None
) -> None:
    clock, cores = Clock(monkeypatch), SharedCores(tmp_path)
    counts(tmp_path, a=(5_000, 9_000), b=(10, 0))  # before the observation
    assert cores.message() is None
    clock.now += AFTER_SECONDS - 1
    counts(tmp_path, a=(6_000, 9_000 + waited), b=(1_010, 0))
    assert cores.message() is None
    clock.now += 1
    message = cores.message()
    assert message is None if expected is None else expected in str(message)
    clock.now += 100
    counts(tmp_path, a=(6_000, 10**9))
    assert cores.message() is None


def test_without_counts_nothing_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, cores = Clock(monkeypatch), SharedCores(tmp_path / "none")
    cores.message()
    clock.now += AFTER_SECONDS
    assert cores.message() is None


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the counts are Linux's")
def test_the_kernel_counts_this_process() -> None:
    ran, waited = SharedCores()._times()
    assert ran > 0
    assert waited >= 0
