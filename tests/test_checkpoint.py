"""Checkpoints are atomic wherever a process dies, and are written while training continues."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.errors import UserError
from jepamba.train import train
from jepamba.train import writer as writer_module
from jepamba.train.checkpoint import STATE, VERSION, checkpoints, load_checkpoint, save_checkpoint
from jepamba.train.step import Trainer
from jepamba.train.writer import CheckpointWriter
from tiny import text_file, tiny

CPU = torch.device("cpu")


def filled(value: float) -> dict[str, Tensor]:
    return {"a": torch.full((3,), value), "b": torch.full((2, 2), value, dtype=torch.bfloat16)}


def test_checkpoints_are_whole_kept_to_a_number_and_checked(tmp_path: Path) -> None:
    for step in (1, 2, 3, 10):
        save_checkpoint(tmp_path, step, {"a": torch.full((3,), float(step))}, {"n": step}, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000003", "step-000000010"]
    tensors, state = load_checkpoint(checkpoints(tmp_path)[-1])
    assert tensors["a"].tolist() == [10.0] * 3
    assert state["n"] == 10
    # A crash while building leaves something that is not a checkpoint.
    (tmp_path / ".building-000000011").mkdir()
    assert len(checkpoints(tmp_path)) == 2
    file = tmp_path / "step-000000010" / "tensors.safetensors"
    data = bytearray(file.read_bytes())
    for position in (0, 9, len(data) - 1):
        damaged = bytearray(data)
        damaged[position] ^= 0x10
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"checksum.*delete"):
            load_checkpoint(tmp_path / "step-000000010")
    file.unlink()
    with pytest.raises(UserError, match="not a complete checkpoint"):
        load_checkpoint(tmp_path / "step-000000010")


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_checkpoint_has_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        path = save_checkpoint(tmp_path, 1, filled(1.0), {}, keep=2)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o777 & ~umask
    assert {file.stat().st_mode & 0o777 for file in path.iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("version", [None, 1, VERSION + 1, "2\n"])
def test_another_version_is_refused_in_one_line(tmp_path: Path, version: int | str | None) -> None:
    path = save_checkpoint(tmp_path, 1, filled(1.0), {"n": 1}, keep=2)
    state = json.loads((path / STATE).read_text())
    del state["version"]
    (path / STATE).write_text(json.dumps(state if version is None else state | {"version": version}))
    with pytest.raises(UserError, match=rf"format version .*; this program reads version {VERSION}$") as caught:
        load_checkpoint(path)
    assert "\n" not in str(caught.value)


DEADLY = ("mkdir", "open", "fsync", "rename", "unlink", "rmdir")
"""The system calls of `save_checkpoint`. Each may be the last one of a process."""


def _die_at(folder: Path, step: int, keep: int, moment: int) -> None:
    """Save a checkpoint of `step`, and die by SIGKILL just before system call number `moment`."""
    left = [moment]

    def deadly(call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments, **options)

        return counted

    for name in DEADLY:
        setattr(os, name, deadly(getattr(os, name)))
    save_checkpoint(folder, step, filled(float(step)), {"n": step}, keep)


def test_a_process_that_dies_at_any_call_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    """The process is killed before its first system call, before its second, and so on."""
    newest, ends = [], 0
    for moment in range(60):
        folder = tmp_path / str(moment)
        for step in (1, 2):
            save_checkpoint(folder, step, filled(float(step)), {"n": step}, keep=2)
        child = os.fork()
        if child == 0:
            try:
                _die_at(folder, 3, 2, moment)
                os._exit(0)
            finally:
                os._exit(1)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        found = checkpoints(folder)
        for path in found:
            tensors, state = load_checkpoint(path)
            assert path.name == f"step-{state['n']:09d}"
            assert tensors["a"].tolist() == [float(state["n"])] * 3
        newest.append(load_checkpoint(found[-1])[1]["n"])
        assert len(found) >= 2
        # Whoever comes next clears up.
        save_checkpoint(folder, 4, filled(4.0), {"n": 4}, keep=2)
        assert len(checkpoints(folder)) == 2
        assert not list(folder.glob(".building-*"))
        if code == 0:
            ends = moment
            break
        assert code == -signal.SIGKILL
    assert ends > 12
    assert newest == sorted(newest)
    assert newest[0] == 2
    assert newest[-1] == 3


def test_what_changes_after_the_call_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, 9, CPU) as writer:
        tensors, state = filled(1.0), {"loader": {"position": 1}}
        for step in (1, 2, 3):
            writer.save(step, tensors, state)
            for value in tensors.values():
                value += 1
            state["loader"]["position"] += 1
        # Other tensors than before, as when an optimizer has taken its first step.
        writer.save(4, {"c": torch.ones(5)}, {})
        writer.save(5, {"c": torch.ones(6)}, {})
    assert writer.failure() is None
    for step, path in zip((1, 2, 3), checkpoints(tmp_path), strict=False):
        tensors, state = load_checkpoint(path)
        assert tensors["a"].tolist() == [float(step)] * 3
        assert tensors["b"].dtype == torch.bfloat16
        assert state["loader"]["position"] == step
    assert [load_checkpoint(path)[0]["c"].numel() for path in checkpoints(tmp_path)[3:]] == [5, 6]


def test_all_checkpoints_of_a_run_use_the_memory_of_its_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared, written, prepare, step = list[int](), list[int](), CheckpointWriter.prepare, Trainer.train_step
    steps = list[int]()

    def counted(writer: CheckpointWriter, tensors: Mapping[str, Tensor]) -> None:
        prepared.append(len(steps))
        prepare(writer, tensors)

    def stepped(*arguments: Any) -> dict[str, float]:
        steps.append(1)
        return step(*arguments)

    def saved(folder: Path, number: int, *rest: Any) -> Path:
        written.append(number)
        return save_checkpoint(folder, number, *rest)

    monkeypatch.setattr(CheckpointWriter, "prepare", counted)
    monkeypatch.setattr(Trainer, "train_step", stepped)
    monkeypatch.setattr(writer_module, "save_checkpoint", saved)
    train(tiny(text_file(tmp_path), train__checkpoint_every=3), tmp_path / "out")
    assert prepared == [1]
    assert written == [3, 6, 8]


def test_at_most_one_is_being_written_and_the_next_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running, most, calls = [], [], threading.Event()

    def slow(*arguments: Any) -> Path:
        running.append(1)
        most.append(len(running))
        calls.wait(10)
        path = save_checkpoint(*arguments)
        running.pop()
        return path

    monkeypatch.setattr(writer_module, "save_checkpoint", slow)
    with CheckpointWriter(tmp_path, 2, CPU) as writer:
        writer.save(1, filled(1.0), {"n": 1})
        # The run goes on although the disk does not answer.
        assert not checkpoints(tmp_path)
        assert writer.failure() is None
        threading.Timer(0.1, calls.set).start()
        writer.save(2, filled(2.0), {"n": 2})
        assert checkpoints(tmp_path)[0].name == "step-000000001"
        writer.save(3, filled(3.0), {"n": 3})
    assert most == [1, 1, 1]
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000002", "step-000000003"]


def test_a_checkpoint_that_cannot_be_written_is_said_once_and_the_next_is(tmp_path: Path) -> None:
    """A file in place of the folder makes the write fail, as a full disk does."""
    folder = tmp_path / "checkpoints"
    folder.write_text("in the way")
    with CheckpointWriter(folder, 2, CPU) as writer:
        writer.save(1, filled(1.0), {})
        failure = writer.failure(wait=True)
        assert failure is not None
        assert "step-000000001: cannot write the checkpoint (Not a directory)" in failure
        assert "\n" not in failure
        assert writer.failure(wait=True) is None
        folder.unlink()
        writer.save(2, filled(2.0), {"n": 2})
        assert writer.failure(wait=True) is None
    assert load_checkpoint(folder / "step-000000002")[1]["n"] == 2


def test_a_failure_of_the_second_is_not_hidden_by_the_third(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int) -> Path:
        if step == 2:
            raise UserError("step 2: cannot write")
        return save_checkpoint(folder, step, tensors, state, keep)

    monkeypatch.setattr(writer_module, "save_checkpoint", broken)
    with CheckpointWriter(tmp_path, 9, CPU) as writer:
        for step in (1, 2, 3):
            writer.save(step, filled(1.0), {})
    assert writer.failure() == "step 2: cannot write"
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000000001", "step-000000003"]


def test_an_error_that_is_ours_is_raised_where_the_run_asks(tmp_path: Path) -> None:
    with CheckpointWriter(tmp_path, 2, CPU) as writer:
        writer.save(1, filled(1.0), {"not JSON": {1, 2}})
        with pytest.raises(TypeError, match="set is not JSON serializable"):
            writer.failure(wait=True)
    assert not checkpoints(tmp_path)


def test_an_error_in_the_run_waits_for_the_checkpoint_and_an_interrupt_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()

    def slow(*arguments: Any) -> Path:
        release.wait(10)
        return save_checkpoint(*arguments)

    monkeypatch.setattr(writer_module, "save_checkpoint", slow)

    def run(folder: Path, error: BaseException) -> None:
        with CheckpointWriter(folder, 2, CPU) as writer:
            writer.save(1, filled(1.0), {})
            raise error

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "interrupted", KeyboardInterrupt())
    assert not checkpoints(tmp_path / "interrupted")
    release.set()
    with pytest.raises(UserError, match="bad data"):
        run(tmp_path / "failed", UserError("bad data"))
    assert checkpoints(tmp_path / "failed")
