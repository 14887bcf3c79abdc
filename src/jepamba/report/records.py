"""What a run left in its folder, read without trust: a run may be in progress, and a crash may cut a line in two."""

from __future__ import annotations

import json
import math
import os
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Record = dict[str, Any]


@dataclass(frozen=True)
class Metrics:
    """The lines of a metrics.jsonl by kind, each kind in order of its step, one line a step."""

    steps: list[Record] = field(default_factory=list)
    terms: list[Record] = field(default_factory=list)
    vals: list[Record] = field(default_factory=list)
    events: list[Record] = field(default_factory=list)
    broken: int = 0
    """Lines that are no JSON object with a kind and a step."""


class MetricsFile:
    """A metrics.jsonl that may be growing: each `read` takes in the lines that have come since the one before.

    Broken lines are counted and passed over. Where a step occurs twice, as after a crash between two checkpoints, its
    last line counts.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()

    def _forget(self) -> None:
        self._by_kind: dict[str, dict[int, Record]] = {"step": {}, "terms": {}, "val": {}}
        self._events: list[Record] = []
        self._broken = self._end = self._file = 0

    def read(self, ended: bool = False) -> Metrics:
        """All metrics up to now; none where there is no such file. A last line without an end is being written, and
        left for later; with `ended` it is a line like any other."""
        try:
            with self.path.open("rb") as file:
                status = os.fstat(file.fileno())
                if status.st_ino != self._file or status.st_size < self._end:
                    # A resumed run wrote it anew, without the steps that it takes again.
                    self._forget()
                    self._file = status.st_ino
                file.seek(self._end)
                new = file.read()
        except OSError:
            self._forget()
            return Metrics()
        taken = len(new) if ended else new.rfind(b"\n") + 1
        self._end += taken
        for line in filter(str.strip, new[:taken].decode("utf-8", errors="replace").splitlines()):
            self._take(line)
        ordered = {kind: [records[step] for step in sorted(records)] for kind, records in self._by_kind.items()}
        return Metrics(ordered["step"], ordered["terms"], ordered["val"], list(self._events), self._broken)

    def _take(self, line: str) -> None:
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
    """The metrics in `path`, all at once; see `MetricsFile`."""
    return MetricsFile(path).read(ended=True)


def read_summary(run_dir: Path) -> Record | None:
    """The run's summary.json, or None where the run has not finished (no file, or not a JSON object)."""
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return summary if isinstance(summary, dict) else None


def read_config(run_dir: Path) -> Record | None:
    """The run's config.toml as nested dictionaries, or None where it is missing or broken."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def number(value: Any) -> float | None:
    """`value` as a finite float, or None for anything else (missing, text, NaN, infinity)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def series(records: Iterable[Record], x: str, y: str) -> list[tuple[float, float]]:
    """The (x, y) of those records in which both are finite numbers."""
    points = ((number(record.get(x)), number(record.get(y))) for record in records)
    return [(a, b) for a, b in points if a is not None and b is not None]


def with_train_bpb(steps: list[Record]) -> list[Record]:
    """Each step with its training BPB: nats / ln 2, tokens and bytes of this step being the growth of their totals."""
    found: list[Record] = []
    tokens_before = bytes_before = 0.0
    for record in steps:
        ce, tokens, size = (number(record.get(key)) for key in ("ce", "tokens", "bytes"))
        if ce is None or tokens is None or size is None:
            continue
        if size > bytes_before:
            bpb = ce / 0.6931471805599453 * (tokens - tokens_before) / (size - bytes_before)
            found.append({"step": record["step"], "train_bpb": bpb})
        tokens_before, bytes_before = tokens, size
    return found
