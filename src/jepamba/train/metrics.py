"""metrics.jsonl: one JSON object a line, written as it happens; docs/metrics.md names every field and its unit."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jepamba.io import atomic_write
from jepamba.train.tracking import Tracker


class MetricsLog:
    """Appends records to a file, and passes them on to `tracker`. A resumed run first drops the records of steps that
    it will take again.

    Records that cannot be written, on a full disk, are kept and written with the next one that can.
    """

    def __init__(self, path: Path, tracker: Tracker | None = None) -> None:
        self.path, self.tracker = path, tracker
        self._waiting: list[bytes] = []

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Add one record; it is in the file when this returns, unless the disk is full."""
        self._waiting.append(json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n")
        # Losing a run for its log would be worse; who needs the file calls `flush`.
        with contextlib.suppress(OSError):
            self.flush()
        if self.tracker is not None:
            self.tracker.log(kind, step, values)
            if values.get("final"):
                self.close()

    def flush(self) -> None:
        """Write what waits. Raises `OSError` naming the file if it cannot be written; it then ends as it did before."""
        if not self._waiting:
            return
        rest = memoryview(b"".join(self._waiting))
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._waiting.clear()

    def close(self, within: float | None = None) -> None:
        """Tell the tracker that no more will come, for now or for good; wait `within` seconds for it at most."""
        if self.tracker is not None:
            self.tracker.finish(within)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, and a last line that a crash cut short."""
        if not self.path.exists():
            return
        kept = []
        for line, record in self._records():
            # A `terms` record is made before the step that follows its own number, and so would be made again.
            kept_until = step - 1 if record["kind"] == "terms" else step
            if record["step"] <= kept_until and not record.get("final"):
                kept.append(line + "\n")
        atomic_write(self.path, "".join(kept).encode())

    def holds(self, kind: str, step: int) -> bool:
        """Whether the file has a record of that kind and step."""
        return self.path.exists() and any((r["kind"], r["step"]) == (kind, step) for _, r in self._records())

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each line and what it says; not one that a crash cut short."""
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield line, record


class NoLog(MetricsLog):
    """What a rank has that writes no file."""

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def rewind(self, step: int) -> None:
        """Nothing."""
