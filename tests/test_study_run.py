"""Execution of plans: skipped, resumed, failed and refused runs, and Ctrl-C."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from folder_holder import held
from jepamba.errors import UserError
from jepamba.gpu_turn import GPU_TURN, gpu_turn, without_gpu_turn
from jepamba.study import run as study_run
from jepamba.study.plan import Plan, load_plan, parse_plan
from jepamba.study.records import planned_runs
from jepamba.study.report import report_study
from jepamba.study.run import run_plan
from tiny import SIZES


def plan(**settings: object) -> Plan:
    return parse_plan(
        {
            "name": "small",
            "question": "Is it?",
            "preset": "quick",
            "seeds": [1, 2],
            "baseline": "a",
            "run": [{"name": "a"}, {"name": "b", "settings": {"jepa.weight": 0.0}}],
            # The decays are what a study leaves to the dial, which would read the text.
            "settings": {
                "train.steps": 3,
                "optim.muon_weight_decay": 0.04,
                "optim.adam_weight_decay": 0.05,
                **settings,
            },
        },
        "plan",
    )


class Ended(subprocess.Popen[bytes]):
    """A process that has ended, or that ends after `polls` polls or a signal."""

    def __init__(self, code: int, polls: int = 0, on_signal: Callable[[], object] = lambda: None) -> None:
        self.returncode, self.polls, self.signals, self.on_signal = code, polls, list[int](), on_signal
        self._child_created = False

    def poll(self) -> int | None:
        self.polls -= 1
        return None if self.polls >= 0 else self.returncode

    def send_signal(self, number: int) -> None:
        self.polls = 0
        self.signals.append(number)
        self.on_signal()

    def wait(self, timeout: float | None = None) -> int:
        return self.returncode


class Trainer:
    """Replaces the processes of the runs: records the commands and writes the files of a run."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.variables: list[dict[str, str]] = []
        self.processes: list[Ended] = []
        self.fail: set[str] = set()
        self.slow: set[str] = set()
        """Runs that do not end by themselves."""
        self.last_moment = False
        """Whether the slow runs finish when they are stopped."""
        self.stop_at = ""

    def __call__(self, command: list[str], variables: dict[str, str]) -> Ended:
        words = command[3:]
        folder = Path(words[-1])
        key = f"{folder.parent.name}/{folder.name}"
        self.commands.append([words[0], key])
        self.variables.append(variables)
        (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        (folder / "config.toml").write_text("")
        if key == self.stop_at:
            raise KeyboardInterrupt

        def finish() -> None:
            (folder / "summary.json").write_text(json.dumps({"bpb_plain": {"bpb": 2.0}, "seconds": 4.0}))

        if key in self.slow:
            self.processes.append(Ended(130, 1 << 30, finish if self.last_moment else lambda: None))
        elif key in self.fail:
            self.processes.append(Ended(2))
        else:
            finish()
            self.processes.append(Ended(0))
        return self.processes[-1]


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    trainer = Trainer()
    monkeypatch.setattr(study_run, "_start", trainer)
    monkeypatch.setattr(study_run, "_POLL_SECONDS", 0.0)
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


def test_chosen_configurations_run_alone_and_the_others_stay_in_the_plan(tmp_path: Path, trainer: Trainer) -> None:
    outcomes = run_plan(plan(), tmp_path / "s", only=["b"])
    assert [(outcome.name, outcome.state) for outcome in outcomes] == [("b", "finished"), ("b", "finished")]
    assert [name for _, name in trainer.commands] == ["b/seed-1", "b/seed-2"]
    assert [item.name for item in load_plan(tmp_path / "s" / "plan.toml").configurations] == ["a", "b"]
    with pytest.raises(UserError, match="there is no configuration 'c'; it has a, b"):
        run_plan(plan(), tmp_path / "t", only=["b", "c"])
    assert not (tmp_path / "t").exists()


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
    (tmp_path / "s/a/seed-1.json").unlink()
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


def test_a_study_keeps_the_commit_of_its_data(
    tmp_path: Path, trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_hub = plan(**{"data.train": "hf://some/books/part:train"})
    for commit in ("1" * 40, "2" * 40):
        monkeypatch.setattr(
            "jepamba.data.hub_text.pinned", lambda name, split, commit=commit: name.replace("/part", f"@{commit}/part")
        )
        run_plan(on_hub, tmp_path / "s")
        settings = [run.settings_file.read_text() for run in planned_runs(on_hub, tmp_path / "s")]
        for content in (*settings, (tmp_path / "s/plan.toml").read_text()):
            assert f"hf://some/books@{'1' * 40}/part:train" in content
        on_hub = replace(on_hub, seeds=(1, 2, 3))


def test_a_record_replaces_the_folder_of_its_run(tmp_path: Path, trainer: Trainer) -> None:
    """Records of two machines, copied into one folder, are one finished study."""
    one, other, both = (tmp_path / name for name in ("one", "other", "both"))
    run_plan(plan().first_seeds(1), one)
    run_plan(replace(plan(), seeds=(2,)), other)
    assert not list(one.rglob("checkpoints"))
    for source in (one, other):
        for record in source.glob("*/seed-*.json"):
            (both / record.parent.name).mkdir(parents=True, exist_ok=True)
            shutil.copy(record, both / record.parent.name)
    trainer.commands = []
    assert {outcome.state for outcome in run_plan(plan(), both)} == {"skipped"}
    assert trainer.commands == []
    assert report_study(both).count("| 2.0000 |") == 4
    lines = (both / "runs.csv").read_text().splitlines()
    assert lines[:2] == [
        "study,arm,seed,budget,steps,seconds,steady_seconds,bpb_plain,bpb_carried,device",
        "small,a,1,3 steps,,4,,2,,",
    ]
    assert len(lines) == 5


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"summary": {"steps": 3}}'])
def test_a_damaged_record_is_refused(tmp_path: Path, trainer: Trainer, content: str) -> None:
    (tmp_path / "s/a").mkdir(parents=True)
    (tmp_path / "s/a/seed-1.json").write_text(content)
    with pytest.raises(UserError, match=r"seed-1\.json: not the record of a finished run; remove it"):
        run_plan(plan(), tmp_path / "s")
    assert trainer.commands == []


def test_a_record_of_other_settings_is_refused_but_not_one_of_other_paths(tmp_path: Path, trainer: Trainer) -> None:
    run_plan(plan(**{"data.train": "here.txt"}), tmp_path / "s")
    with pytest.raises(UserError, match=r"this run has optim\.grad_clip = 1\.0, but the plan has 2\.0"):
        run_plan(plan(**{"optim.grad_clip": 2.0}), tmp_path / "s")
    states = {outcome.state for outcome in run_plan(plan(**{"data.train": "there.txt"}), tmp_path / "s")}
    assert states == {"skipped"}


@pytest.mark.parametrize("overlap", [1, 3])
def test_each_gpu_keeps_the_runs_of_a_seed(tmp_path: Path, trainer: Trainer, overlap: int) -> None:
    four = replace(plan(), seeds=(1, 2, 3, 4))
    outcomes = run_plan(four, tmp_path / "s", gpus=2, overlap=overlap)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    assert sorted(trainer.commands) == sorted(["train", f"{n}/seed-{s}"] for n in "ab" for s in four.seeds)
    of_seed: dict[str, set[str]] = {}
    for (_, key), variables in zip(trainer.commands, trainer.variables, strict=True):
        of_seed.setdefault(key[-1], set()).add(variables["CUDA_VISIBLE_DEVICES"])
        turn = variables.get("JEPAMBA_GPU_TURN", "")
        assert Path(turn).name == (f"gpu-{variables['CUDA_VISIBLE_DEVICES']}" if overlap > 1 else "")
    assert all(len(gpus) == 1 for gpus in of_seed.values())
    assert set.union(*of_seed.values()) == {"0", "1"}


@pytest.mark.parametrize(("given", "threads"), [("", "2"), ("1", "1"), ("8", "2"), ("0", "2"), ("4,2", "2")])
def test_processes_share_the_cores(given: str, threads: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(study_run, "CORES", 9)
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert study_run._environment(0, [0] * 4, tmp_path)["OMP_NUM_THREADS"] == threads


def test_the_visible_gpu_of_a_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(study_run, "CORES", 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert study_run._environment(0, [0], tmp_path) == {}
    threads = {"OMP_NUM_THREADS": "4"}
    assert study_run._environment(0, [0, 0], tmp_path) == {**threads, GPU_TURN: str(tmp_path / "gpu-0")}
    assert study_run._environment(1, [0, 1], tmp_path) == {**threads, "CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert study_run._environment(1, [0, 1], tmp_path) == {**threads, "CUDA_VISIBLE_DEVICES": "7"}
    command = [sys.executable, "-c", "import os, sys; sys.exit(int(os.environ['CUDA_VISIBLE_DEVICES']))"]
    assert study_run._start(command, {"CUDA_VISIBLE_DEVICES": "7"}).wait() == 7


def test_processes_of_one_gpu_take_turns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No two of three threads are in a turn at once; without the variable they are."""
    inside, most = [0], [0]

    def work() -> None:
        for _ in range(3):
            with gpu_turn():
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.02)
                inside[0] -= 1

    for variable, expected in ((str(tmp_path / "turn"), {1}), ("", {2, 3})):
        monkeypatch.setenv(GPU_TURN, variable)
        most[0] = 0
        threads = [threading.Thread(target=work) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most[0] in expected


def test_runs_that_have_begun_do_not_wait_for_all_that_begin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """While a turn is taken, three runs wait to begin and then one to continue: at most one begins before it."""
    monkeypatch.setenv(GPU_TURN, str(tmp_path / "turn"))
    order: list[bool] = []

    def work(begins: bool) -> None:
        with gpu_turn(begins=begins):
            order.append(begins)
            time.sleep(0.02)

    with gpu_turn():
        threads = [threading.Thread(target=work, args=(begins,)) for begins in (True, True, True, False)]
        for thread in threads:
            thread.start()
            time.sleep(0.05)
    for thread in threads:
        thread.join()
    assert sorted(order) == [False, True, True, True]
    assert order.index(False) <= 1


def test_a_turn_can_be_given_up_for_a_while(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another process gets the turn within the block only. Without a turn the block does nothing."""
    path = tmp_path / "turn"

    def is_free() -> bool:
        with open(path, "ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    monkeypatch.setenv(GPU_TURN, str(path))
    with gpu_turn():
        assert not is_free()
        with without_gpu_turn():
            assert is_free()
        assert not is_free()
        with pytest.raises(KeyError), without_gpu_turn():
            raise KeyError
        assert not is_free()
    with without_gpu_turn():
        assert is_free()
    assert is_free()


@pytest.mark.parametrize("changed", [{"rule": "b is better if p < 0.1"}, {"alpha": 0.1}, {"baseline": "b"}])
def test_a_rule_does_not_change_once_a_run_is_finished(
    tmp_path: Path, trainer: Trainer, changed: dict[str, Any]
) -> None:
    out, other = tmp_path / "s", replace(plan(), **changed)
    out.mkdir()
    (out / "plan.toml").write_text(tomli_w.dumps(other.to_dict()))
    run_plan(plan().first_seeds(1), out)
    (key,) = changed
    with pytest.raises(UserError, match=rf"plan.toml: its {key} is not that of the plan, and it has finished runs"):
        run_plan(other, out)
    kept = load_plan(out / "plan.toml")
    assert (kept.rule, kept.alpha, kept.baseline, kept.seeds) == (plan().rule, plan().alpha, plan().baseline, (1,))
    with pytest.raises(UserError, match=rf"its {key} is not that of the plan"):
        run_plan(replace(other, seeds=(7, 8)), out)  # its own runs are not finished, but those of the folder are
    run_plan(plan(), out)


def test_no_run_starts_that_would_not_end_in_time(tmp_path: Path, trainer: Trainer) -> None:
    out = tmp_path / "s"
    run_plan(plan().first_seeds(1), out)
    for name, seconds in {"a": 50.0, "b": 5.0}.items():
        path = out / name / "seed-1.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"wall_seconds": seconds}))
    trainer.commands = []
    states = {(o.name, o.seed): o.state for o in run_plan(plan(), out, stop_after=20.0)}
    assert trainer.commands == [["train", "b/seed-2"]]
    assert states[("a", 2)] == "waiting"
    run_plan(plan(), out, stop_after=60.0)
    assert trainer.commands[1:] == [["train", "a/seed-2"]]
    # A configuration without a finished run is expected to take as long as the others, also if it runs alone.
    (out / "b" / "seed-1.json").unlink()
    (out / "b" / "seed-2.json").unlink()
    for seed in (1, 2):
        shutil.rmtree(out / "b" / f"seed-{seed}")
    states = {(o.name, o.seed): o.state for o in run_plan(plan(), out, stop_after=20.0, only=["b"])}
    assert states == {("b", 1): "waiting", ("b", 2): "waiting"}


def test_a_run_that_does_not_end_in_time_is_stopped(tmp_path: Path, trainer: Trainer) -> None:
    trainer.slow = {"b/seed-1"}
    states = [outcome.state for outcome in run_plan(plan(), tmp_path / "s", stop_after=0.5)]
    assert states == ["finished", "waiting", "waiting", "waiting"]
    assert trainer.processes[1].signals == [signal.SIGINT]
    trainer.slow, trainer.commands = set(), []
    run_plan(plan(), tmp_path / "s")
    assert trainer.commands[0] == ["resume", "b/seed-1"]


def test_a_run_that_finishes_while_it_is_stopped_is_recorded(tmp_path: Path, trainer: Trainer) -> None:
    trainer.slow, trainer.last_moment = {"a/seed-1"}, True
    states = [outcome.state for outcome in run_plan(plan(), tmp_path / "s", stop_after=0.2)]
    assert states == ["finished", "waiting", "waiting", "waiting"]
    assert (tmp_path / "s/a/seed-1.json").exists()


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
    process = study_run._start([sys.executable, "-c", CHILD, str(note)], {})

    def wait() -> None:
        try:
            process.wait()
        finally:
            study_run._stop([process])

    with pytest.raises(KeyboardInterrupt), study_run._signals_as_interrupts():
        wait()
    thread.join()
    assert note.read_text() == str(int(signal.SIGINT))


TINY = SIZES | {
    "data.tokenizer": "bytes",
    "jepa.sigreg_samples": 32,
    "train.seconds": 0.0,
    "train.tokens_per_step": 256,
    "train.tokens_per_micro": 256,
    "train.val_every": 2,
    "train.val_tokens": 64,
    "train.terms_every": 0,
    "eval.calibrate_tokens": 0,
    "eval.carry": True,
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
    assert text.count("| 1 | too few pairs |") >= 3
    cells = [line.split(",") for line in (out / "runs.csv").read_text().splitlines()[1:]]
    assert [row[1:5] for row in cells] == [["a", "5", "4 steps", "4"], ["b", "5", "4 steps", "4"]]
    assert all(0 < float(row[6]) <= float(row[5]) and 1 < float(row[8]) < 9 and row[9] == "CPU" for row in cells)
    # The same seed: both runs begin at the same weights and read the same windows, so their first losses are equal.
    first = [
        json.loads(line)["ce"]
        for name in ("a", "b")
        for line in (out / name / "seed-5/metrics.jsonl").read_text().splitlines()
        if '"kind": "step", "step": 1,' in line
    ]
    assert len(first) == 2
    assert first[0] == first[1]
    # The record replaces the folder.
    before = json.loads((out / "report.json").read_text())
    shutil.rmtree(out / "a/seed-5")
    report_study(out)
    assert json.loads((out / "report.json").read_text()) == before
    assert [outcome.state for outcome in run_plan(one_seed, out)] == ["skipped", "skipped"]
