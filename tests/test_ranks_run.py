"""Whole runs on several processes: under torchrun, resumed on other numbers of processes, with faults."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jepamba.config import Run, with_settings
from jepamba.train.checkpoint import checkpoints
from processes import Running, records, seen
from tiny import preset, text_file, tiny

TERMS = ("loss", "ce", "z_loss", "jepa", "sigreg", "grad_norm")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Six steps with everything that ranks share: bit allocation, validation, loss terms, resets, one SIGReg sample."""
    small = tiny(text_file(tmp_path_factory.mktemp("text")))
    return with_settings(
        small,
        {
            "train.precision": "fp32",  # sums in another order agree closely
            "train.steps": 6,
            "train.tokens_per_step": 32 * 5,
            "train.tokens_per_micro": 32 * 5,
            "train.val_every": 2,
            "train.val_tokens": 300,
            "train.terms_every": 3,
            "train.checkpoint_every": 3,
            "quant.large": 256,
            "quant.budget_bytes": 16000,
            "quant.qat_fraction": 0.4,
            "optim.ghost_steps": 1,
            "eval.stride": 16,
            "eval.sliding_tokens": 300,
        },
    )


@pytest.fixture(scope="module")
def alone(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one process, with its run in `run`."""
    folder = tmp_path_factory.mktemp("alone")
    started = Running(["train", preset(folder, run), "--out", str(folder / "run"), "--json"], folder)
    assert started.wait() == [0], started.output()
    return folder


@pytest.fixture(scope="module")
def two(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of two processes, with its run in `run`."""
    folder = tmp_path_factory.mktemp("two")
    started = Running(["train", preset(folder, run), "--out", str(folder / "run"), "--json"], folder, 2)
    assert started.wait() == [0, 0], started.output()
    # One process speaks.
    assert started.output(1) == ""
    return folder


@pytest.fixture(scope="module")
def torchrun(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run under torchrun."""
    folder = tmp_path_factory.mktemp("torchrun")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    words = ["-m", "jepamba", "train", preset(folder, run), "--out", str(folder / "run"), "--json"]
    done = subprocess.run([*launcher, *words], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["steps"] == 6
    assert printed["out"] == str(folder / "run")
    return folder


def same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Equal losses up to rounding, equal data."""
    assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for a, b in zip(ours, theirs, strict=True):
        assert (a["tokens"], a["bytes"], a["epoch"]) == (b["tokens"], b["bytes"], b["epoch"])
        for term in TERMS:
            # Fake quantization amplifies rounding differences: the tolerance is wider once it begins.
            assert a[term] == pytest.approx(b[term], rel=1e-3 if a["step"] < 4 else 2e-2, abs=1e-6), (a["step"], term)


@pytest.mark.parametrize("how", ["two", pytest.param("torchrun", marks=pytest.mark.slow)])
def test_two_processes_train_as_one_does(alone: Path, how: str, request: pytest.FixtureRequest) -> None:
    two: Path = request.getfixturevalue(how)
    same(records(two / "run"), records(alone / "run"))
    assert {path.name for path in (two / "run").iterdir()} - {"report.html"} == {
        path.name for path in (alone / "run").iterdir()
    } - {"report.html"}
    for kind in ("val", "terms", "event"):
        ours, theirs = records(two / "run", kind), records(alone / "run", kind)
        assert [record["step"] for record in ours] == [record["step"] for record in theirs]
    for ours, theirs in zip(records(two / "run", "val"), records(alone / "run", "val"), strict=True):
        assert ours["bpb"] == pytest.approx(theirs["bpb"], rel=1e-2)

    ours, theirs = (json.loads((folder / "run" / "summary.json").read_text()) for folder in (two, alone))
    for score in ("bpb_plain", "bpb_calibrated", "bpb_sliding"):
        assert ours[score]["tokens"] == theirs[score]["tokens"]
        assert ours[score]["bpb"] == pytest.approx(theirs[score]["bpb"], rel=1e-2)


@pytest.mark.parametrize("size", [1, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_of_two_resumes_on_another_number_with_the_same_data(
    two: Path, alone: Path, tmp_path: Path, size: int
) -> None:
    shutil.copytree(two / "run", tmp_path / "run")
    for name in ("artifact.jepa", "summary.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    before = [record for record in records(tmp_path / "run") if record["step"] <= 3]
    started = Running(["resume", str(tmp_path / "run")], tmp_path, size)
    assert started.wait() == [0] * size, started.output()
    assert records(tmp_path / "run")[:3] == before
    same(records(tmp_path / "run"), records(two / "run"))
    # The very windows of each step, whoever read them.
    ours, theirs = seen(tmp_path), seen(alone)
    for step in (4, 5, 6):
        assert set(theirs[step]) == set(ours[step])
    assert all(started.output(rank) == "" for rank in range(1, size))


def test_a_mistake_ends_all_processes_with_its_line(run: Run, two: Path, tmp_path: Path) -> None:
    started = Running(["train", preset(tmp_path, run), "--out", str(two / "run")], tmp_path, 2)
    assert started.wait() == [2, 2]
    assert "already holds a run" in started.output(0)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "data.train",
            r"rank 1 has another number of training tokens than rank 0 \([0-9,]+, there [0-9,]+\): every process must",
        ),
        ("data.val", r"rank 1 has another validation text than rank 0: every process must read the same text"),
    ],
)
def test_ranks_that_read_different_text_are_refused(run: Run, tmp_path: Path, setting: str, message: str) -> None:
    """Two folders, as on two machines, each with a file of the same name."""
    text = Path(run.data.train).read_text()
    # Cut short, and of the same length: a word in the middle is another.
    other = text[:-100] if setting == "data.train" else text.replace("the", "thE", 1)
    for rank, content in enumerate((text, other)):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "same.txt").write_text(content)
    settings = {setting: "same.txt", "data.cache": "cache"}
    words = ["train", preset(tmp_path, with_settings(run, settings)), "--out", str(tmp_path / "out")]
    started = Running(words, tmp_path, 2, environment={"FOLDERS": str(tmp_path)}, setup="faulty:folder_of_its_own")
    assert started.wait() == [2, 2]
    for rank in range(2):
        assert re.search(message, started.output(rank)), started.output(rank)
    assert not (tmp_path / "out").exists()


def test_a_run_is_not_resumed_on_different_text(run: Run, two: Path, tmp_path: Path) -> None:
    text = Path(run.data.train).read_text()
    for rank, content in enumerate((text, text.replace("the", "thE", 1))):
        folder = tmp_path / str(rank)
        folder.mkdir()
        (folder / "same.txt").write_text(content)
    shutil.copytree(two / "run", tmp_path / "run")
    preset(tmp_path / "run", with_settings(run, {"data.train": "same.txt", "data.cache": "cache"}))
    (tmp_path / "run" / "tiny.toml").replace(tmp_path / "run" / "config.toml")
    words = ["resume", str(tmp_path / "run")]
    started = Running(words, tmp_path, 2, environment={"FOLDERS": str(tmp_path)}, setup="faulty:folder_of_its_own")
    assert started.wait() == [2, 2]
    assert "rank 1 has another training text than rank 0: " in started.output(0)
