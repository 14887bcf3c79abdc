"""metrics.jsonl: one JSON object a line. docs/metrics.md names every field and its unit."""

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
    """Appends records to a file and passes them on to `tracker`.

    Records that cannot be written, as on a full disk, stay in memory and are written with a later one.
    """

    def __init__(self, path: Path, tracker: Tracker | None = None) -> None:
        self.path, self.tracker = path, tracker
        self._pending: list[bytes] = []

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Add one record; it is in the file when this returns, unless the disk is full."""
        self._pending.append(json.dumps({"kind": kind, "step": step, **values}).encode() + b"\n")
        # A full disk must not end the run. Callers that need the file call `flush`.
        with contextlib.suppress(OSError):
            self.flush()
        if self.tracker is not None:
            self.tracker.log(kind, step, values)
            if values.get("final"):
                self.close()

    def flush(self) -> None:
        """Write the pending records. Raises `OSError` with the file's name if it cannot; the file is then unchanged."""
        if not self._pending:
            return
        rest = memoryview(b"".join(self._pending))
        with self.path.open("ab", buffering=0) as file:
            end = file.seek(0, os.SEEK_END)
            try:
                while rest:
                    rest = rest[file.write(rest) :]
            except OSError as error:
                file.truncate(end)
                raise OSError(error.errno, error.strerror, str(self.path)) from error
        self._pending.clear()

    def close(self, within: float | None = None) -> None:
        """Finish the tracker. With `within`, wait at most that many seconds for it."""
        if self.tracker is not None:
            self.tracker.finish(within)

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, which a resumed run takes again, and a last line that a crash cut short."""
        if not self.path.exists():
            return
        kept = []
        for line, record in self._records():
            # A `terms` record of step n is made before step n + 1, so a run resumed at n makes it again.
            last_step = step - 1 if record["kind"] == "terms" else step
            if record["step"] <= last_step and not record.get("final"):
                kept.append(line + "\n")
        atomic_write(self.path, "".join(kept).encode())

    def find(self, kind: str, step: int) -> dict[str, Any] | None:
        """Return the first record of that kind and step in the file, if there is one."""
        records = self._records() if self.path.exists() else iter(())
        return next((record for _, record in records if (record["kind"], record["step"]) == (kind, step)), None)

    def _records(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Each line and its record, except for a line that a crash cut short."""
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            yield line, record


class NoLog(MetricsLog):
    """The log of a rank other than 0: it writes nothing."""

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""

    def rewind(self, step: int) -> None:
        """Do nothing."""
