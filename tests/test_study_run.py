"""Execution of plans: skipped, resumed, failed and refused runs, and Ctrl-C."""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from folder_holder import held
from jepamba.errors import UserError
from jepamba.study import run as study_run
from jepamba.study.plan import Plan, parse_plan
from jepamba.study.report import report_study
from jepamba.study.run import planned_runs, run_plan


def plan(**settings: object) -> Plan:
    return parse_plan(
        {
            "name": "small",
            "question": "Is it?",
            "preset": "quick",
            "seeds": [1, 2],
            "baseline": "a",
            "run": [{"name": "a"}, {"name": "b", "settings": {"jepa.weight": 0.0}}],
            "settings": {"train.steps": 3, **settings},
        },
        "plan",
    )


class Trainer:
    """Replaces the process of a run: records the command and writes the files of a run."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.fail: set[str] = set()
        self.stop_at = ""

    def __call__(self, command: list[str]) -> int:
        words = command[3:]
        folder = Path(words[-1])
        key = f"{folder.parent.name}/{folder.name}"
        self.commands.append([words[0], key])
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").write_text("")
        if key == self.stop_at:
            raise KeyboardInterrupt
        if key in self.fail:
            return 2
        (folder / "summary.json").write_text(json.dumps({"bpb_plain": {"bpb": 2.0}}))
        return 0


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(study_run, "_run_process", trainer)
    return trainer


def test_every_run_is_executed_once_seed_by_seed(tmp_path: Path, trainer: Trainer) -> None:
    outcomes = run_plan(plan(), tmp_path / "s")
    assert trainer.commands == [
        ["train", "a/seed-1"],
        ["train", "b/seed-1"],
        ["train", "a/seed-2"],
        ["train", "b/seed-2"],
    ]
    assert {outcome.state for outcome in outcomes} == {"finished"}
    assert {outcome.state for outcome in run_plan(plan(), tmp_path / "s")} == {"skipped"}
    assert len(trainer.commands) == 4


def test_a_failed_run_does_not_stop_the_others_and_is_resumed_next_time(tmp_path: Path, trainer: Trainer) -> None:
    trainer.fail = {"b/seed-1"}
    states = {(o.name, o.seed): o.state for o in run_plan(plan(), tmp_path / "s")}
    assert states == {("a", 1): "finished", ("b", 1): "failed", ("a", 2): "finished", ("b", 2): "finished"}
    trainer.fail, trainer.commands = set(), []
    run_plan(plan(), tmp_path / "s")
    assert trainer.commands == [["resume", "b/seed-1"]]


def test_an_interrupt_leaves_everything_resumable(tmp_path: Path, trainer: Trainer) -> None:
    trainer.stop_at = "b/seed-1"
    with pytest.raises(KeyboardInterrupt):
        run_plan(plan(), tmp_path / "s")
    trainer.stop_at, trainer.commands = "", []
    outcomes = run_plan(plan(), tmp_path / "s")
    assert trainer.commands == [["resume", "b/seed-1"], ["train", "a/seed-2"], ["train", "b/seed-2"]]
    assert [outcome.state for outcome in outcomes] == ["skipped", "finished", "finished", "finished"]


@pytest.mark.parametrize("name", ["plan.toml", "a/seed-1.toml"])
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    trainer.fail = {"a/seed-1"}
    run_plan(plan(), tmp_path / "s")
    file, replace = tmp_path / "s" / name, Path.replace
    before = file.read_bytes()

    def fail(self: Path, target: Path) -> Path:
        if target == file:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device"):
        run_plan(plan(), tmp_path / "s")
    assert file.read_bytes() == before
    assert not list(file.parent.glob(".*.partial"))


def test_a_broken_summary_is_no_finished_run(tmp_path: Path, trainer: Trainer) -> None:
    run_plan(plan(), tmp_path / "s")
    (tmp_path / "s/a/seed-1/summary.json").write_text('{"bpb_pl')
    trainer.commands = []
    run_plan(plan(), tmp_path / "s")
    assert trainer.commands == [["resume", "a/seed-1"]]


def test_other_settings_in_the_same_folder_are_refused_before_anything_runs(tmp_path: Path, trainer: Trainer) -> None:
    run_plan(plan(), tmp_path / "s")
    trainer.commands = []
    with pytest.raises(UserError, match=r"this run has optim\.grad_clip = 1\.0, but the plan has 2\.0"):
        run_plan(plan(**{"optim.grad_clip": 2.0}), tmp_path / "s")
    assert trainer.commands == []


def test_a_foreign_folder_is_left_alone(tmp_path: Path, trainer: Trainer) -> None:
    (tmp_path / "s/a/seed-1").mkdir(parents=True)
    with pytest.raises(UserError, match="not part of this study"):
        run_plan(plan(), tmp_path / "s")
    assert trainer.commands == []


def test_two_processes_cannot_run_one_study(tmp_path: Path, trainer: Trainer) -> None:
    out = tmp_path / "s"
    with held(out), pytest.raises(UserError, match="s: another process writes to it"):
        run_plan(plan(), out)
    assert trainer.commands == []


def test_pairs_share_everything_but_their_settings(tmp_path: Path) -> None:
    a, b = planned_runs(plan(), tmp_path)[:2]
    for section in ("data", "train", "optim"):
        assert getattr(a.settings, section) == getattr(b.settings, section)
    assert a.settings.train.seed == b.settings.train.seed == 1


CHILD = """
import signal, sys, time, pathlib
def stop(number, frame):
    pathlib.Path(sys.argv[1]).write_text(str(number))
    sys.exit(130)
signal.signal(signal.SIGINT, stop)
pathlib.Path(sys.argv[1] + ".ready").touch()
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_the_run_once_and_waits_for_its_checkpoint(tmp_path: Path, number: int) -> None:
    note = tmp_path / "note"

    def interrupt() -> None:
        while not Path(f"{note}.ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt), study_run._signals_as_interrupts():
        study_run._run_process([sys.executable, "-c", CHILD, str(note)])
    thread.join()
    assert note.read_text() == str(int(signal.SIGINT))


TINY = {
    "data.tokenizer": "bytes",
    "data.seq_len": 32,
    "model.d_model": 32,
    "model.embed_dim": 16,
    "model.n_layer": 2,
    "model.headdim": 16,
    "model.d_state": 8,
    "model.mlp_mult": 1.0,
    "jepa.sigreg_samples": 32,
    "jepa.sigreg_projections": 8,
    "train.seconds": 0.0,
    "train.tokens_per_step": 256,
    "train.tokens_per_micro": 256,
    "train.val_every": 2,
    "train.val_tokens": 64,
    "train.terms_every": 0,
    "eval.calibrate_tokens": 0,
    "eval.diagnostics_tokens": 0,
    "eval.prompts": ["a"],
    "eval.sample_tokens": 1,
}


def test_a_study_of_real_runs(tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    source = Path(os.__file__).read_text(encoding="utf-8")
    for index in range(6):
        (tmp_path / f"text/{index}.txt").write_text(source[400 * index : 400 * (index + 1)], encoding="utf-8")
    tiny = plan(**TINY, **{"data.train": str(tmp_path / "text"), "train.steps": 4})
    one_seed = parse_plan({**tiny.to_dict(), "seeds": [5]}, "plan")
    out = tmp_path / "s"
    assert [outcome.state for outcome in run_plan(one_seed, out)] == ["finished", "finished"]
    assert [outcome.state for outcome in run_plan(one_seed, out)] == ["skipped", "skipped"]
    text = report_study(out)
    # By steps and as artifacts; whether so short runs have a common second is left to chance.
    assert text.count("| 1 | too few pairs |") >= 2
    # The same seed: both runs begin at the same weights and read the same windows, so their first losses are equal.
    first = [
        json.loads(line)["ce"]
        for name in ("a", "b")
        for line in (out / name / "seed-5/metrics.jsonl").read_text().splitlines()
        if '"kind": "step", "step": 1,' in line
    ]
    assert len(first) == 2
    assert first[0] == first[1]
