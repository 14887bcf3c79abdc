"""Execution of a plan: each run, a configuration with a seed, has its own process and its own folder.

    OUT/plan.toml                       the plan
    OUT/<configuration>/seed-<s>.toml   the settings of a run, written before it starts
    OUT/<configuration>/seed-<s>/       the folder of the run: config.toml, metrics.jsonl, summary.json, …

Finished runs are skipped and interrupted runs resume from their newest checkpoint, so the same command, repeated,
completes a study.
"""

from __future__ import annotations

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

from jepamba.config import Run, flatten, to_dict
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.io import atomic_write
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import duration
from jepamba.report.records import read_summary
from jepamba.study.plan import Plan, load_plan

INTERRUPT_SECONDS = 120.0
"""Maximum time for an interrupted run to write its checkpoint; then it is killed."""

State = Literal["finished", "skipped", "failed"]


@dataclass(frozen=True)
class PlannedRun:
    """A run of a plan: a configuration with a seed, its settings and its folder."""

    name: str
    seed: int
    settings: Run
    folder: Path

    @property
    def settings_file(self) -> Path:
        """The file with the settings that the run started with."""
        return self.folder.with_name(self.folder.name + ".toml")

    @property
    def finished(self) -> bool:
        """Whether the run has a complete summary.json, which a run writes last."""
        summary = read_summary(self.folder)
        return summary is not None and isinstance(summary.get("bpb_plain"), dict)


@dataclass(frozen=True)
class Outcome:
    """The result of executing one run."""

    name: str
    seed: int
    state: State
    seconds: float
    """Wall-clock time of this execution, with start-up and scoring; 0 for a skipped run."""
    message: str = ""


def planned_runs(plan: Plan, out: Path) -> list[PlannedRun]:
    """Return the runs of `plan` in the folder `out`, seed by seed, so that the first pairs are complete early."""
    return [
        PlannedRun(item.name, seed, plan.run(item, seed), out / item.name / f"seed-{seed}")
        for seed in plan.seeds
        for item in plan.configurations
    ]


def run_plan(plan: Plan, out: Path) -> list[Outcome]:
    """Execute the unfinished runs of `plan` in the folder `out`. A failed run does not stop the others.

    Returns: one outcome per run, in the order of execution.
    Raises: `UserError` before the first run if another process uses `out` or if `out` holds runs with other settings;
    `KeyboardInterrupt` on a signal of `SIGNALS`, after the current run has written its checkpoint.
    """
    with locked(out), _signals_as_interrupts():
        plan = _with_choices(plan, out)
        runs = planned_runs(plan, out)
        for run in runs:
            _check_settings(run)
        atomic_write(out / "plan.toml", tomli_w.dumps(plan.to_dict()).encode())
        outcomes = []
        for index, run in enumerate(runs, 1):
            _log(f"[{index}/{len(runs)}] {run.name}, seed {run.seed}")
            outcomes.append(_execute(run))
            _log(f"    {_describe(outcomes[-1])}")
    return outcomes


def _with_choices(plan: Plan, out: Path) -> Plan:
    """Return `plan` with the choices of the dial as common settings of all runs: those in `out`, or new ones."""
    run = plan.base()
    if run.train.dial and (out / "plan.toml").exists():
        before = load_plan(out / "plan.toml").settings
        plan = plan.with_common({name: before[name] for name in run.train.dial if name in before})
        run = plan.base()
    if not run.train.dial:
        return plan
    # A study without a dial does not load PyTorch.
    from jepamba.train import read_and_resolve

    _, choices = read_and_resolve(run, say=_log)
    return plan.with_common({choice.name: choice.value for choice in choices})


def _execute(run: PlannedRun) -> Outcome:
    if run.finished:
        return Outcome(run.name, run.seed, "skipped", 0.0)
    atomic_write(run.settings_file, dump_toml(run.settings).encode())
    has_begun = (run.folder / "config.toml").exists()
    words = ["resume", str(run.folder)] if has_begun else ["train", str(run.settings_file), "--out", str(run.folder)]
    started = time.monotonic()
    code = _run_process([sys.executable, "-m", "jepamba", *words])
    seconds = time.monotonic() - started
    if code == 0 and run.finished:
        return Outcome(run.name, run.seed, "finished", seconds)
    reason = f"exit code {code}" if code else "it ended without a summary.json"
    return Outcome(run.name, run.seed, "failed", seconds, reason)


def _run_process(command: list[str]) -> int:
    """Run `command` and return its exit code. Its output goes to standard error; standard output is for results.

    The process has its own process group, so that Ctrl-C reaches it exactly once, through this function. It can then
    write a checkpoint.
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
        _log(f"    stopped (exit code {code})")
        raise
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def _check_settings(run: PlannedRun) -> None:
    """Raise `UserError` if the folder of `run` holds a run with other settings."""
    if not run.folder.exists():
        return
    if not run.settings_file.exists():
        raise UserError(f"{run.folder}: holds a run that is not part of this study; choose another --out")
    old, new = flatten(to_dict(load_preset(str(run.settings_file)))), flatten(to_dict(run.settings))
    for key, value in new.items():
        if old[key] != value:
            raise UserError(
                f"{run.folder}: this run has {key} = {old[key]!r}, but the plan has {value!r}; choose another --out"
            )


@contextmanager
def _signals_as_interrupts() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C: stop the current run after a checkpoint instead of leaving it behind."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _describe(outcome: Outcome) -> str:
    match outcome.state:
        case "skipped":
            return "already finished"
        case "finished":
            return f"finished in {duration(outcome.seconds)}"
        case "failed":
            return f"FAILED: {outcome.message}"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
