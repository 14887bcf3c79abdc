"""Execution of a plan: each run, a configuration with a seed, has its own process and its own folder.

    OUT/plan.toml                       the plan
    OUT/<configuration>/seed-<s>.json   the record of a finished run
    OUT/<configuration>/seed-<s>.toml   the settings of a run, written before it starts
    OUT/<configuration>/seed-<s>/       the folder of the run: config.toml, metrics.jsonl, summary.json, …

Finished runs are skipped and interrupted runs resume from their newest checkpoint, so the same command, repeated,
completes a study. With several GPUs each has one run at a time, and the runs of a seed stay on one GPU.
"""

from __future__ import annotations

import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Literal

import tomli_w

from jepamba import CORES
from jepamba.config import Run, flatten, to_dict
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.gpu_turn import GPU_TURN
from jepamba.io import atomic_write, check_utf8_name
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import duration
from jepamba.study.commits import with_commits
from jepamba.study.plan import Plan, load_plan
from jepamba.study.records import PlannedRun, planned_runs, read_record, write_record

INTERRUPT_SECONDS = 120.0
"""Maximum time for interrupted runs to write their checkpoints; then they are killed."""
_POLL_SECONDS = 0.1

State = Literal["finished", "skipped", "failed", "waiting"]


@dataclass(frozen=True)
class Outcome:
    """The result of executing one run."""

    name: str
    seed: int
    state: State
    """`waiting`: not finished before `stop_after`."""
    seconds: float
    """Wall-clock time of this execution, with start-up and scoring; 0 for a run that was not started."""
    message: str = ""


@dataclass(frozen=True)
class _Process:
    run: PlannedRun
    process: subprocess.Popen[bytes]
    started: float


def run_plan(
    plan: Plan, out: Path, *, gpus: int = 1, overlap: int = 1, stop_after: float = 0.0, only: Sequence[str] = ()
) -> list[Outcome]:
    """Execute the unfinished runs of `plan` in the folder `out`. A failed run does not stop the others.

    Arguments:
        gpus: GPUs to use, each for one run at a time. 1: what the process sees.
        overlap: Processes for each GPU. One of them trains or scores, while the others start, pack their artifact or
            wait for their turn.
        stop_after: Seconds after which no run is at work. No run is started that would not end in time, as far as
            earlier runs tell; a run that does not end in time is stopped after a checkpoint. 0: no limit.
        only: The configurations to run. Empty: all.

    Returns: one outcome per run, in the order of the plan.
    Raises: `UserError` before the first run if another process uses `out`, if its name is not UTF-8, if it holds
    runs with other settings or finished runs under another rule, or if `only` has a name that is not in the plan;
    `KeyboardInterrupt` on Ctrl-C, SIGTERM or SIGHUP, after the current runs have written their checkpoints.
    """
    deadline = time.monotonic() + stop_after if stop_after > 0 else float("inf")
    names = [item.name for item in plan.configurations]
    for name in only:
        if name not in names:
            raise UserError(f"{plan.name}: there is no configuration {name!r}; it has {', '.join(names)}")
    check_utf8_name(out)
    with locked(out), _signals_as_interrupts(), tempfile.TemporaryDirectory() as turns:
        plan = _with_choices(with_commits(plan, out), out)
        runs = planned_runs(plan, out)
        for run in runs:
            _check_settings(run)
        _check_rule(plan, out)
        atomic_write(out / "plan.toml", tomli_w.dumps(plan.to_dict()).encode())
        wanted = [run for run in runs if not only or run.name in only]
        places = [gpu for _ in range(overlap) for gpu in range(gpus)]
        return _execute(wanted, places, deadline, Path(turns), _wall_seconds(runs))


def _with_choices(plan: Plan, out: Path) -> Plan:
    """Return `plan` with the choices of the dial as common settings of all runs: those in `out`, or new ones.

    The budgets stay those of the plan: a limit in tokens would end the runs of a budget in seconds at equal steps.
    """
    if "train.tokens" in plan.base().train.dial:
        plan = plan.with_common({"train.tokens": 0})
    run = plan.base()
    if run.train.dial and (out / "plan.toml").exists():
        before, defaults = load_plan(out / "plan.toml").settings, flatten(to_dict(Run()))
        # What is not there was not in the dial when the study began: its runs have the default.
        plan = plan.with_common({name: before.get(name, defaults[name]) for name in run.train.dial})
        run = plan.base()
    if not run.train.dial:
        return plan
    # A study without a dial does not load PyTorch.
    from jepamba.train import read_and_resolve

    _, choices = read_and_resolve(run, say=_log)
    return plan.with_common({choice.name: choice.value for choice in choices})


def _check_rule(plan: Plan, out: Path) -> None:
    """Raise `UserError` if the plan in `out` has finished runs and is judged in another way than `plan`."""
    path = out / "plan.toml"
    if not path.exists():
        return
    before = load_plan(path)
    if not any(run.finished for each in (before, plan) for run in planned_runs(each, out)):
        return
    for key in ("rule", "alpha", "baseline", "time_baseline"):
        old, new = getattr(before, key), getattr(plan, key)
        if old != new:
            raise UserError(
                f"{path}: its {key} is not that of the plan, and it has finished runs: {str(old)[:60]!r}, now "
                f"{str(new)[:60]!r}; a rule is written before the runs: choose another folder, or run {path} itself"
            )


def _execute(
    runs: Sequence[PlannedRun], places: Sequence[int], deadline: float, turns: Path, times: dict[str, list[float]]
) -> list[Outcome]:
    """Execute `runs`, one process at a time in each of `places`, which are numbers of GPUs.

    Arguments:
        turns: A folder for the files by which the processes of a GPU take turns.
        times: Wall-clock seconds of finished runs by configuration (`_wall_seconds`); those of `runs` are added.
    """
    outcomes = {run: Outcome(run.name, run.seed, "waiting", 0.0) for run in runs}
    waiting = []
    for run in runs:
        if not run.finished:
            waiting.append(run)
            continue
        outcomes[run] = replace(outcomes[run], state="skipped")
        if not run.record_file.exists():
            write_record(run, 0.0)
    _log(f"{len(runs)} runs, {len(runs) - len(waiting)} of them finished before")
    processes: dict[int, _Process] = {}
    seeds: dict[int, int] = {}
    try:
        while time.monotonic() < deadline:
            for place, gpu in enumerate(places):
                seconds = deadline - time.monotonic()
                if place not in processes and (chosen := _next_run(waiting, gpu, seeds, times, seconds)) is not None:
                    waiting.remove(chosen)
                    seeds[gpu] = chosen.seed
                    processes[place] = _begin(chosen, _environment(gpu, places, turns))
            if not processes:
                break
            time.sleep(_POLL_SECONDS)
            for place, current in list(processes.items()):
                code = current.process.poll()
                if code is not None:
                    del processes[place]
                    outcome = outcomes[current.run] = _ended(current, code)
                    if outcome.state == "finished":
                        times.setdefault(outcome.name, []).append(outcome.seconds)
                    _log(f"{outcome.name}, seed {outcome.seed}: {_describe(outcome)}")
    finally:
        _stop([current.process for current in processes.values()])
    for current in processes.values():
        if current.run.finished:
            outcomes[current.run] = _ended(current, 0)
    return list(outcomes.values())


def _next_run(
    waiting: Sequence[PlannedRun], gpu: int, seeds: Mapping[int, int], times: Mapping[str, list[float]], seconds: float
) -> PlannedRun | None:
    """The next run for `gpu` that should end within `seconds`; None if there is none.

    First the runs of the seed that the GPU had last, then those of seeds that no GPU has: a pair shares its GPU.
    """
    others = {seed for other, seed in seeds.items() if other != gpu}
    ordered = sorted(waiting, key=lambda run: 0 if run.seed == seeds.get(gpu) else 2 if run.seed in others else 1)
    return next((run for run in ordered if _expected_seconds(run, times) <= seconds), None)


def _wall_seconds(runs: Sequence[PlannedRun]) -> dict[str, list[float]]:
    """The wall-clock seconds of the finished runs by configuration, as far as they are known."""
    times: dict[str, list[float]] = {}
    for run in runs:
        seconds = (read_record(run) or {}).get("wall_seconds")
        if seconds:
            times.setdefault(run.name, []).append(float(seconds))
    return times


def _expected_seconds(run: PlannedRun, times: Mapping[str, list[float]]) -> float:
    """How long `run` should take: as runs of its configuration did, or else as the longest of the others did."""
    if run.name in times:
        return statistics.median(times[run.name])
    return max((max(values) for values in times.values()), default=0.0)


def _environment(gpu: int, places: Sequence[int], turns: Path) -> dict[str, str]:
    """The variables of a process on `gpu`: the GPU that it sees if there are several, and whose turn it waits for.

    Processes that run at the same time share the cores: threads that wait for a core hold up all others.
    """
    variables = {}
    if len(places) > 1:
        share, given = max(1, CORES // len(places)), os.environ.get("OMP_NUM_THREADS", "")
        variables["OMP_NUM_THREADS"] = given if given.isdigit() and 0 < int(given) < share else str(share)
    if len(set(places)) > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        variables["CUDA_VISIBLE_DEVICES"] = visible.split(",")[gpu] if visible else str(gpu)
    if len(places) > len(set(places)):
        variables[GPU_TURN] = str(turns / f"gpu-{gpu}")
    return variables


def _begin(run: PlannedRun, variables: Mapping[str, str]) -> _Process:
    _log(f"{run.name}, seed {run.seed}: started {' '.join(f'{name}={value}' for name, value in variables.items())}")
    atomic_write(run.settings_file, dump_toml(run.settings).encode())
    has_begun = (run.folder / "config.toml").exists()
    words = ["resume", str(run.folder)] if has_begun else ["train", str(run.settings_file), "--out", str(run.folder)]
    return _Process(run, _start([sys.executable, "-m", "jepamba", *words], variables), time.monotonic())


def _ended(current: _Process, code: int) -> Outcome:
    run, seconds = current.run, time.monotonic() - current.started
    if code == 0 and run.finished:
        write_record(run, seconds)
        shutil.rmtree(run.folder / "checkpoints", ignore_errors=True)
        return Outcome(run.name, run.seed, "finished", seconds)
    reason = f"exit code {code}" if code else "it ended without a summary.json"
    return Outcome(run.name, run.seed, "failed", seconds, reason)


def _start(command: list[str], variables: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start `command`, with `variables` added to the environment.

    Its output goes to standard error; standard output is for results. The process has its own process group, so that
    Ctrl-C reaches it exactly once, through `_stop`. It can then write a checkpoint.
    """
    environment = {**os.environ, **variables}
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=2, process_group=0, env=environment)


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Interrupt `processes` and wait for their checkpoints; after `INTERRUPT_SECONDS` or a second signal, kill them."""
    try:
        for process in processes:
            process.send_signal(signal.SIGINT)
        end = time.monotonic() + INTERRUPT_SECONDS
        with suppress(KeyboardInterrupt, subprocess.TimeoutExpired):
            for process in processes:
                process.wait(max(0.0, end - time.monotonic()))
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
            _log(f"    stopped (exit code {process.returncode})")


def _check_settings(run: PlannedRun) -> None:
    """Raise `UserError` if the record or the folder of `run` is of a run with other settings."""
    if read_record(run) is not None or not run.folder.exists():
        return
    if not run.settings_file.exists():
        raise UserError(f"{run.folder}: holds a run that is not part of this study; choose another folder")
    old, new = flatten(to_dict(load_preset(str(run.settings_file)))), flatten(to_dict(run.settings))
    for key, value in new.items():
        if old[key] != value:
            raise UserError(
                f"{run.folder}: this run has {key} = {old[key]!r}, but the plan has {value!r}; choose another folder"
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
        case "waiting":
            return "not finished"


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
