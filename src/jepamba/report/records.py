"""Readers of the files in the folder of a run. They tolerate runs in progress and lines that a crash truncated."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]
STOPPED = "stopped by "
"""Start of the event that a run logs when a signal stops it."""


@dataclass(frozen=True)
class Metrics:
    """The records of a metrics.jsonl by kind, in order of step, one record per step and kind."""

    steps: list[Record] = field(default_factory=list)
    terms: list[Record] = field(default_factory=list)
    vals: list[Record] = field(default_factory=list)
    samples: list[Record] = field(default_factory=list)
    starts: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    broken: int = 0
    """Number of lines that are not a JSON object with an integer step."""


_KINDS = ("step", "terms", "val", "sample", "start")
"""The kinds of which a step has at most one record, in the order of the fields of `Metrics`."""


class MetricsFile:
    """Incremental reader of a growing metrics.jsonl: each `read` parses only the new lines.

    Malformed lines are counted and skipped. If a step occurs twice (after a crash between two checkpoints), its last
    line wins.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reset()

    def _reset(self) -> None:
        self._by_kind: dict[str, dict[int, Record]] = {kind: {} for kind in _KINDS}
        self._events: list[Record] = []
        self._broken = self._offset = self._inode = 0

    def read(self, ended: bool = False) -> Metrics:
        """Return all metrics so far; empty metrics if there is no file.

        Arguments: `ended`, the file is complete. Otherwise a last line without a line feed is left for the next call,
        because its writer has not finished it.
        """
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._inode or status.st_size < self._offset:
                    # A resumed run replaced the file by one without the steps that it repeats.
                    self._reset()
                    self._inode = status.st_ino
                file.seek(self._offset)
                new = file.read()
        except OSError:
            self._reset()
            return Metrics()
        size = len(new) if ended else new.rfind(b"\n") + 1
        self._offset += size
        for line in filter(str.strip, new[:size].decode("utf-8", errors="replace").splitlines()):
            self._add_line(line)
        ordered = {kind: [records[step] for step in sorted(records)] for kind, records in self._by_kind.items()}
        step, terms, val, sample, start = (ordered[kind] for kind in _KINDS)
        return Metrics(step, terms, val, sample, start, list(self._events), self._broken)

    def _add_line(self, line: str) -> None:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or type(record.get("step")) is not int:
            self._broken += 1
        elif record.get("kind") == "event":
            self._events.append(record)
        elif record.get("kind") in self._by_kind:
            self._by_kind[record["kind"]][record["step"]] = record


def read_metrics(path: Path) -> Metrics:
    """Read the complete metrics.jsonl at `path`; see `MetricsFile`."""
    return MetricsFile(path).read(ended=True)


def read_summary(run_dir: Path) -> Record | None:
    """Read the summary.json of a run. Returns None if it is missing or not a JSON object: the run is not finished."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def read_config(run_dir: Path) -> Record | None:
    """Read the config.toml of a run as nested dictionaries. Returns None if it is missing or malformed."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def number(value: Any) -> float | None:
    """Return `value` as a float, or None if it is not a finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def section_of(record: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    """Return the mapping under `keys` in nested `record`; an empty one if it has none."""
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def records_in(value: Any) -> list[Record]:
    """Return the records of a list; an empty list if `value` is none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def series(records: Iterable[Record], x: str, y: str) -> list[tuple[float, float]]:
    """Return the points (x, y) of the records in which both fields are finite numbers."""
    points = ((number(record.get(x)), number(record.get(y))) for record in records)
    return [(a, b) for a, b in points if a is not None and b is not None]


def with_train_bpb(steps: list[Record]) -> list[Record]:
    """Return records with `step`, `seconds` and `train_bpb` (bits per byte).

    BPB is ce / ln 2 · tokens / bytes. The tokens and bytes of a step are the increases of their running totals.
    """
    found: list[Record] = []
    tokens_before = bytes_before = 0.0
    for record in steps:
        ce, tokens, size = (number(record.get(key)) for key in ("ce", "tokens", "bytes"))
        if ce is None or tokens is None or size is None:
            continue
        if size > bytes_before:
            bpb = ce / 0.6931471805599453 * (tokens - tokens_before) / (size - bytes_before)
            found.append({"step": record["step"], "seconds": record.get("seconds"), "train_bpb": bpb})
        tokens_before, bytes_before = tokens, size
    return found
