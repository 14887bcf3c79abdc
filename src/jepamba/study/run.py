"""Running a plan: every configuration with every seed, each a process of its own in a folder of its own.

    OUT/plan.toml                       the plan as it was run
    OUT/<configuration>/seed-<s>.toml   the settings of one run, written before it starts
    OUT/<configuration>/seed-<s>/       its folder: config.toml, metrics.jsonl, summary.json, artifact.jepa, …

A finished run is passed over, an interrupted one continues from its newest checkpoint; so the same command, given
again, does what is left to do.
"""

from __future__ import annotations

import fcntl
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal

import tomli_w

from jepamba.config import Run, to_dict
from jepamba.errors import UserError
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import duration
from jepamba.report.page import flat
from jepamba.report.records import read_summary
from jepamba.study.plan import Plan

INTERRUPT_SECONDS = 120.0
"""How long a run that was asked to stop may take to write its checkpoint."""

State = Literal["finished", "skipped", "failed"]


@dataclass(frozen=True)
class Cell:
    """One run of a plan: a configuration with a seed, and where it lives."""

    name: str
    seed: int
    run: Run
    folder: Path

    @property
    def settings_file(self) -> Path:
        """The settings that the run was started with."""
        return self.folder.with_name(self.folder.name + ".toml")

    @property
    def finished(self) -> bool:
        """Whether the run has a whole summary.json, which a run writes last."""
        summary = read_summary(self.folder)
        return summary is not None and isinstance(summary.get("bpb_plain"), dict)


@dataclass(frozen=True)
class Outcome:
    """What came of one run."""

    name: str
    seed: int
    state: State
    seconds: float
    """Seconds that it took now, start-up and scoring included; 0 for a skipped one."""
    message: str = ""


def cells(plan: Plan, out: Path) -> list[Cell]:
    """The runs of `plan` under `out`: seed by seed, so that the first pairs are complete early."""
    return [
        Cell(item.name, seed, plan.run(item, seed), out / item.name / f"seed-{seed}")
        for seed in plan.seeds
        for item in plan.configurations
    ]


def run_plan(plan: Plan, out: Path) -> list[Outcome]:
    """Run what is left of `plan` in `out`; one outcome a run, in the order in which they were taken.

    A run that fails is reported, and the others go on. Raises `UserError` before anything is run if `out` is in use by
    another process or holds a run of these names with other settings, and `KeyboardInterrupt` after the run in
    progress has written its checkpoint.
    """
    todo = cells(plan, out)
    for cell in todo:
        _check_settings(cell)
    out.mkdir(parents=True, exist_ok=True)
    with _only_one(out), _terminate_as_interrupt():
        (out / "plan.toml").write_text(tomli_w.dumps(plan.to_dict()), encoding="utf-8")
        outcomes = []
        for index, cell in enumerate(todo, 1):
            _say(f"[{index}/{len(todo)}] {cell.name}, seed {cell.seed}")
            outcomes.append(_run_cell(cell))
            _say(f"    {_said(outcomes[-1])}")
    return outcomes


def _run_cell(cell: Cell) -> Outcome:
    if cell.finished:
        return Outcome(cell.name, cell.seed, "skipped", 0.0)
    cell.folder.parent.mkdir(parents=True, exist_ok=True)
    cell.settings_file.write_text(dump_toml(cell.run), encoding="utf-8")
    begun = (cell.folder / "config.toml").exists()
    words = ["resume", str(cell.folder)] if begun else ["train", str(cell.settings_file), "--out", str(cell.folder)]
    started = time.monotonic()
    code = _process([sys.executable, "-m", "jepamba", *words])
    seconds = time.monotonic() - started
    if code == 0 and cell.finished:
        return Outcome(cell.name, cell.seed, "finished", seconds)
    why = f"exit code {code}" if code else "it ended without a summary.json"
    return Outcome(cell.name, cell.seed, "failed", seconds, why)


def _process(command: list[str]) -> int:
    """Run `command` and return its exit code. What it prints goes to standard error: standard output is for results.

    It stands in a process group of its own, so that Ctrl-C reaches it exactly once, through this function, and can be
    answered with a checkpoint.
    """
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0)
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            code = process.wait(INTERRUPT_SECONDS)
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            process.kill()
            code = process.wait()
        _say(f"    stopped (exit code {code})")
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _check_settings(cell: Cell) -> None:
    """Refuse to mix runs: what is in the folder must have been started with the settings of the plan."""
    if not cell.folder.exists():
        return
    if not cell.settings_file.exists():
        raise UserError(f"{cell.folder}: a run that is not of this study is here; choose another --out")
    then, now = dict(flat(to_dict(load_preset(str(cell.settings_file))))), dict(flat(to_dict(cell.run)))
    for key, value in now.items():
        if then[key] != value:
            raise UserError(
                f"{cell.folder}: was run with {key} = {then[key]!r}, the plan now says {value!r}; choose another --out"
            )


@contextmanager
def _only_one(out: Path) -> Iterator[None]:
    """Keep a second `study run` out of this folder; the lock goes with the process, however that ends."""
    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(
                f"{out}: another process is running this study; wait for it, or choose another --out"
            ) from None
        yield


@contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a study as Ctrl-C does, with a checkpoint, rather than leave its run behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _said(outcome: Outcome) -> str:
    match outcome.state:
        case "skipped":
            return "finished before"
        case "finished":
            return f"finished in {duration(outcome.seconds)}"
        case "failed":
            return f"FAILED: {outcome.message}"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
