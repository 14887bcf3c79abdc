"""Ranks that differ in their settings, their command, their version of jepamba, or their GPUs are refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from jepamba.config import Run
from jepamba.distributed import World
from jepamba.errors import UserError
from jepamba.train import consistency
from jepamba.train.checkpoint import checkpoints
from processes import Running, losses, records
from spawn import together
from tiny import preset, text_file, tiny


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


def started(tmp_path: Path, *runs: Run) -> Running:
    """Start one rank for each of `runs`, each in its own folder, where its settings are the file tiny.toml."""
    for rank, run in enumerate(runs):
        (tmp_path / str(rank)).mkdir()
        preset(tmp_path / str(rank), run)
    words = ["train", "tiny.toml", "--out", str(tmp_path / "out")]
    environment = {"FOLDERS": str(tmp_path)}
    return Running(words, tmp_path, len(runs), environment, setup="faulty:folder_of_its_own")


def test_ranks_with_other_settings_are_refused(text: Path, tmp_path: Path) -> None:
    """The message names the first setting that differs. The text, which does not exist, is not read."""
    one, another = tiny(text, optim__muon_lr=0.02), tiny(text, optim__muon_lr=0.01, train__seed=4, data__train="none")
    running = started(tmp_path, one, another)
    assert running.wait() == [2, 2]
    for rank in range(2):
        last = running.output(rank).splitlines()[-1]
        assert "rank 1 has optim.muon_lr = 0.01 where rank 0 has 0.02; start all with the same flags" in last
    assert not (tmp_path / "out").exists()


def test_each_machine_may_have_its_own_paths(text: Path, tmp_path: Path) -> None:
    """The number of threads may also differ."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    moved = tiny(text_file(elsewhere), train__steps=2, train__threads=2)
    running = started(tmp_path, tiny(text, train__steps=2), moved)
    assert running.wait() == [0, 0], running.output(1)
    assert len(records(tmp_path / "out")) == 2


@pytest.mark.slow
def test_a_resume_can_name_the_paths_of_each_machine(text: Path, tmp_path: Path) -> None:
    """Each machine can name its own paths on resume. Otherwise it uses those of rank 0."""
    settings: dict[str, Any] = {"data__cache": "cache", "train__steps": 4, "train__checkpoint_every": 1}
    for rank, name in enumerate(("text.txt", "place.txt")):
        (tmp_path / str(rank)).mkdir()
        (tmp_path / str(rank) / name).write_bytes(text.read_bytes())
        preset(tmp_path / str(rank), tiny(Path("text.txt"), **settings))
    out, environment, setup = tmp_path / "out", {"FOLDERS": str(tmp_path)}, "faulty:folder_of_its_own"
    own = {1: ["--data.train", "place.txt", "--train.threads", "2"]}
    words = ["train", "tiny.toml", "--out", str(out)]
    running = Running(words, tmp_path / "first", 2, environment, setup, own=own)
    assert running.wait() == [0, 0], running.output(1)
    whole, words = losses(out), ["resume", str(out)]
    shutil.rmtree(checkpoints(out / "checkpoints")[-1])
    running = Running(words, tmp_path / "without", 2, environment, setup)
    assert running.wait() == [2, 2]
    expected = "jepamba: rank 1: text.txt: no such file or folder; the run names it as data.train"
    assert running.last_words(0).startswith(expected)
    running = Running(words, tmp_path / "with", 2, environment, setup, own=own)
    assert running.wait() == [0, 0], running.output(1)
    assert losses(out) == whole
    for rank in range(2):
        (tmp_path / str(rank) / "other.txt").write_bytes(text.read_bytes().replace(b"the", b"thE", 1))
    running = Running([*words, "--data.train", "other.txt"], tmp_path / "other", 2, environment, setup)
    assert running.wait() == [2, 2]
    assert "the training text is not what this run started with: put the files back" in running.last_words(0)


def refusals(world: World, run: Run) -> list[str]:
    """The errors when rank 1 runs another command, has another version of jepamba, or sees a GPU."""
    found = []
    version, sees = consistency.__version__, torch.cuda.is_available
    for command, other_version, gpu in (("resume", version, False), ("train", "9.9", False), ("train", version, True)):
        consistency.__version__ = version if world.is_rank_zero else other_version
        torch.cuda.is_available = lambda gpu=gpu: gpu and not world.is_rank_zero  # type: ignore[misc]
        try:
            consistency.check_same_command("train" if world.is_rank_zero else command, world)
            consistency.check_same_settings(run, world)
        except UserError as error:
            found.append(str(error))
    consistency.__version__, torch.cuda.is_available = version, sees
    consistency.check_same_command("train", world)
    consistency.check_same_settings(run, world)
    return found


def test_ranks_with_another_command_jepamba_or_device_are_refused(text: Path) -> None:
    ours, theirs = together(2, refusals, tiny(text))
    assert isinstance(ours, list), ours
    assert ours[:2] == theirs[:2]
    command, version, device = ours
    assert command.startswith("rank 1 has the command resume where rank 0 has train; start all with the same command")
    assert version.startswith(f"rank 1 has jepamba 9.9 where rank 0 has {consistency.__version__}; ")
    assert device.startswith('rank 1 has train.device = "cuda" where rank 0 has "cpu"; PyTorch must see a GPU')
