"""metrics.jsonl: one JSON object a line, written as it happens; docs/metrics.md names every field and its unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from jepamba.train.tracking import Tracker


class MetricsLog:
    """Appends records to a file, and passes them on to `tracker`. A resumed run first drops the records of steps that
    it will take again."""

    def __init__(self, path: Path, tracker: Tracker | None = None) -> None:
        self.path, self.tracker = path, tracker

    def append(self, kind: str, step: int, **values: Any) -> None:
        """Add one record; it is in the file when this returns."""
        with self.path.open("a") as file:
            file.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        if self.tracker is not None:
            self.tracker.log(kind, step, values)
            if values.get("final"):
                self.tracker.finish()

    def rewind(self, step: int) -> None:
        """Drop the records after `step`, and a last line that a crash cut short."""
        if not self.path.exists():
            return
        kept = []
        for line in self.path.read_text().splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:
                continue
            # A `terms` record is made before the step that follows its own number, and so would be made again.
            kept_until = step - 1 if record["kind"] == "terms" else step
            if record["step"] <= kept_until and not record.get("final"):
                kept.append(line + "\n")
        replacement = self.path.with_suffix(".tmp")
        replacement.write_text("".join(kept))
        replacement.replace(self.path)
