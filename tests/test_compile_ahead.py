"""Kernels are compiled before the first step: all that it launches, and nothing else changes."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("triton")

from compile_ahead_cases import CASES
from jepamba.ops import compile_tasks
from jepamba.ops.compile_only import build_launcher, can_compile_ahead
from jepamba.ops.compile_tasks import CompileTasks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What `compile_ahead_cases.py` printed."""
    script = Path(__file__).with_name("compile_ahead_cases.py")
    words = [sys.executable, str(script), str(tmp_path_factory.mktemp("cases"))]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=300, env=environment)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_step_launches_what_is_compiled(found: dict[str, Any], case: str) -> None:
    variants = found["variants"][case]
    # Kernels of the weights, of the forward and the backward pass, and of the update.
    assert {"bf16_kernel", "forward_kernel", "state_kernel", "row_kernel", "apply_updates_kernel"} <= {
        *variants["ahead"]
    }
    assert variants["launched ahead"] == 0
    assert variants["later"] == []
    assert variants["in vain"] == []
    assert ("down_gradient_kernel" in variants["ahead"]) == ("bf16" in case)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_the_state_stays(found: dict[str, Any], case: str) -> None:
    assert found["variants"][case]["same"]


@pytest.mark.slow
def test_training_is_the_same_to_the_bit(found: dict[str, Any]) -> None:
    without, after = found["losses"]
    assert without == after
    assert without[-1] < without[0]


def test_the_launcher_of_a_compiled_kernel_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built = list[tuple[str, str]]()
    driver = SimpleNamespace(launcher_cls=lambda src, metadata: built.append((src, metadata)))
    monkeypatch.setattr("triton.runtime.driver._active", driver)
    build_launcher(SimpleNamespace(src="source", metadata="metadata"))
    assert built == [("source", "metadata")]


def test_interpreted_kernels_are_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("triton.knobs.runtime.interpret", True)
    assert not can_compile_ahead()


class Compilation:
    """A compilation with a cache, which a fork shares with its parent: a file. Notes the processes that computed it."""

    def __init__(self, path: Path, seconds: float = 2 * compile_tasks.CACHE_HIT) -> None:
        self.path, self.seconds = path, seconds

    def __call__(self) -> str:
        if not self.path.exists():
            time.sleep(self.seconds)
            self.path.write_text(str(os.getpid()))
        return self.path.read_text()


def test_compilations_run_in_forks(tmp_path: Path) -> None:
    after = tmp_path / "after"
    tasks = CompileTasks(lambda result: after.open("a").write(f"{os.getpid()} {result}\n"))
    futures = [tasks.submit(Compilation(tmp_path / str(index))) for index in range(6)]
    tasks.run(3)
    # The first shows that there is something to compile.
    first, *others = (future.result() for future in futures)
    assert first == str(os.getpid())
    assert len({*others}) > 1
    assert first not in others
    assert sorted(after.read_text().splitlines()) == sorted(f"{process} {process}" for process in others)


def test_a_fork_does_not_collect_the_garbage_of_its_parent(tmp_path: Path) -> None:
    after = tmp_path / "after"
    tasks = CompileTasks(lambda result: after.open("a").write(f"{gc.isenabled()}\n"))
    for index in range(3):
        tasks.submit(Compilation(tmp_path / str(index)))
    tasks.run(2)
    assert after.read_text().splitlines() == ["False", "False"]
    assert gc.isenabled()


def test_what_is_in_the_cache_needs_no_fork(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_tasks, "_run_in_processes", lambda tasks, workers: pytest.fail("forked"))
    tasks = CompileTasks(str)
    futures = [tasks.submit(Compilation(tmp_path / str(index), seconds=0.0)) for index in range(6)]
    tasks.run(3)
    assert [future.result() for future in futures] == [str(os.getpid())] * 6


def test_an_error_in_a_fork_is_that_of_its_task(tmp_path: Path) -> None:
    def fails() -> None:
        raise ValueError("no such instruction")

    tasks = CompileTasks(str)
    first, second, third = (
        tasks.submit(task) for task in (Compilation(tmp_path / "a"), fails, Compilation(tmp_path / "b"))
    )
    tasks.run(2)
    assert first.result() == str(os.getpid())
    assert str(second.exception()) == "no such instruction"
    assert third.result() != first.result()


def test_a_fork_that_hangs_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compile_tasks, "TIME_LIMIT", 0.3)
    parent = os.getpid()

    def hangs() -> int:
        if os.getpid() != parent:
            time.sleep(60)
        return os.getpid()

    tasks = CompileTasks(str)
    _, future = tasks.submit(Compilation(tmp_path / "a")), tasks.submit(hangs)
    started = time.monotonic()
    tasks.run(2)
    assert time.monotonic() - started < 30
    assert future.result() == parent
