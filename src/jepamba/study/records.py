"""The record of a finished run: a small JSON file, from which a study is reported and continued.

    OUT/<configuration>/seed-<s>.json

The folder of the run is not needed any more. So records can be kept in a repository, and records that other machines
made are merged by copying them into the folder of the study.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepamba.config import MACHINE_SETTINGS, Run, flatten, to_dict
from jepamba.config.jepa import BALANCE_EVERY
from jepamba.config.settings import DIAL
from jepamba.errors import UserError
from jepamba.io import atomic_write
from jepamba.report.records import Metrics, Record, number, read_metrics, read_summary
from jepamba.study.plan import Plan

SUMMARY_KEYS = (
    "steps",
    "skipped",
    "seconds",
    "tokens",
    "train_tokens",
    "bpb_plain",
    "bpb_calibrated",
    "bpb_carried",
    "artifact_bytes",
    "diagnostics",
    "environment",
)
"""What a record keeps of summary.json, beside the numbers of parameters."""
_LONG_STEP = 3.0
"""A step that takes more than this many median steps waits for a compilation or the capture of a graph."""

Curve = list[tuple[int, float, float]]
"""Validations as (step, seconds, BPB), steps ascending."""


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
    def record_file(self) -> Path:
        """The file of the run's record."""
        return self.folder.with_name(self.folder.name + ".json")

    @property
    def finished(self) -> bool:
        """Whether the run has a record, or a complete summary.json, which a run writes last."""
        return self.record_file.exists() or _is_complete(read_summary(self.folder))


@dataclass(frozen=True)
class Result:
    """The validation curves and the summary of one run."""

    name: str
    seed: int
    curves: dict[int, Curve]
    """Validation curves by the number of bytes that they score."""
    summary: Record | None
    """None for an unfinished run."""
    steady_seconds: float | None = None
    """See `steady_seconds`. None for an unfinished run."""

    @property
    def program(self) -> str | None:
        """The version of jepamba that trained the run; None where the record does not say it."""
        return ((self.summary or {}).get("environment") or {}).get("program")


def planned_runs(plan: Plan, out: Path) -> list[PlannedRun]:
    """Return the runs of `plan` in the folder `out`, seed by seed, so that the first pairs are complete early."""
    return [
        PlannedRun(item.name, seed, plan.run(item, seed), out / item.name / f"seed-{seed}")
        for seed in plan.seeds
        for item in plan.configurations
    ]


def write_record(run: PlannedRun, wall_seconds: float) -> None:
    """Write the record of `run`, whose folder holds a finished run.

    Arguments: `wall_seconds`, the time that the run took with its start, packing and scores; 0: unknown.
    """
    summary = read_summary(run.folder) or {}
    metrics = read_metrics(run.folder / "metrics.jsonl")
    parameters = summary.get("parameters") or {}
    record = {
        "configuration": run.name,
        "seed": run.seed,
        "settings": changed_settings(run.settings),
        "wall_seconds": round(wall_seconds, 1),
        "steady_seconds": steady_seconds(metrics, run.settings),
        "summary": {key: summary.get(key) for key in SUMMARY_KEYS}
        | {"parameters": {key: parameters.get(key) for key in ("kept", "training_only")}},
        "curves": {str(size): curve for size, curve in curves(metrics).items()},
    }
    atomic_write(run.record_file, (json.dumps(record) + "\n").encode())


def read_record(run: PlannedRun) -> Record | None:
    """Read the record of `run`; None if it has none.

    Raises: `UserError` if the file is no record of a finished run, or of a run with other settings.
    """
    path = run.record_file
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError):
        record = None
    if not isinstance(record, dict) or not _is_complete(record.get("summary")):
        raise UserError(f"{path}: not the record of a finished run; remove it, and the run will be repeated")
    _check_same_settings(run, record.get("settings"))
    return record


def read_result(run: PlannedRun) -> Result | None:
    """Return what is known of `run`, from its record or from its folder; None if it has not started."""
    record = read_record(run)
    if record is not None:
        found = {
            int(size): [(int(step), float(seconds), float(bpb)) for step, seconds, bpb in curve]
            for size, curve in record["curves"].items()
        }
        return Result(run.name, run.seed, found, record["summary"], number(record.get("steady_seconds")))
    if not run.folder.is_dir():
        return None
    metrics = read_metrics(run.folder / "metrics.jsonl")
    summary = read_summary(run.folder)
    seconds = None if summary is None else steady_seconds(metrics, run.settings)
    return Result(run.name, run.seed, curves(metrics), summary, seconds)


def curves(metrics: Metrics) -> dict[int, Curve]:
    """Return the validation curves by the number of bytes that they score. Skips incomplete records."""
    found: dict[int, Curve] = defaultdict(list)
    for record in metrics.vals:
        size, seconds, bpb = (number(record.get(key)) for key in ("bytes", "seconds", "bpb"))
        if size is not None and seconds is not None and bpb is not None:
            found[int(size)].append((record["step"], seconds, bpb))
    return dict(found)


def steady_seconds(metrics: Metrics, settings: Run) -> float | None:
    """Return the time of training without compilations and graph captures; None without steps.

    A step that takes more than three median steps counts as one median step, unless it measures gradients for
    `jepa.balance`, which is part of the cost of that setting.
    """
    ends = [(record["step"], end) for record in metrics.steps if (end := number(record.get("seconds"))) is not None]
    durations = [(step, end - start) for (_, start), (step, end) in zip([(0, 0.0), *ends], ends, strict=False)]
    if not durations:
        return None
    median = statistics.median(duration for _, duration in durations)

    def measures_gradients(step: int) -> bool:
        # Before the step that is logged as 51, 101, …; the first step also compiles. A skipped step is not logged.
        return settings.jepa.balance > 0 and step > BALANCE_EVERY and step % BALANCE_EVERY == 1

    return sum(
        median if duration > _LONG_STEP * median and not measures_gradients(step) else duration
        for step, duration in durations
    )


def changed_settings(run: Run) -> dict[str, Any]:
    """Return the settings of `run` that differ from the defaults, without those of the machine."""
    defaults = _defaults()
    changed = {key: value for key, value in flatten(to_dict(run)).items() if value != defaults[key]}
    return {key: value for key, value in changed.items() if key not in MACHINE_SETTINGS}


def _check_same_settings(run: PlannedRun, settings: Any) -> None:
    """Raise `UserError` if a record's `settings` are not those of `run`.

    What the plan leaves to the dial may have any value: the dial of an earlier version did not choose it.
    """
    if not isinstance(settings, Mapping):
        raise UserError(f"{run.record_file}: a record without settings; remove it, and the run will be repeated")
    planned, defaults = changed_settings(run.settings), _defaults()
    for key in sorted({*settings, *planned} - {DIAL, *run.settings.train.dial}):
        old, new = (layer.get(key, defaults.get(key)) for layer in (settings, planned))
        if old != new:
            raise UserError(
                f"{run.record_file}: this run has {key} = {old!r}, but the plan has {new!r}; choose another folder"
            )


def _defaults() -> dict[str, Any]:
    return flatten(to_dict(Run()))


def _is_complete(summary: Any) -> bool:
    return isinstance(summary, dict) and isinstance(summary.get("bpb_plain"), dict)
