"""Notices that other programs use the cores on which this process trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

AFTER_SECONDS = 10.0
"""Time of observation. Earlier, threads start and code is compiled."""
NOTABLE_SHARE = 0.1
"""Share of the time that threads could run in which they wait for a core. On an idle machine it is below 0.02."""
TASKS = Path("/proc/self/task")


class SharedCores:
    """Observes the threads of this process from its first `message` on."""

    def __init__(self, tasks: Path = TASKS) -> None:
        self._tasks = tasks
        self._start: tuple[float, float, float] | None = None
        self._finished = False

    def message(self) -> str | None:
        """Return once, after `AFTER_SECONDS`, a sentence if the threads wait for cores; otherwise None.

        Linux counts for each thread the nanoseconds in which it ran, and in which it could run and waited for a core
        (`/proc/PID/schedstat`, Documentation/scheduler/sched-stats.rst). Elsewhere nothing is observed.
        """
        if self._finished:
            return None
        now = time.monotonic()
        if self._start is None:
            self._start = (now, *self._times())
        began, ran_before, waited_before = self._start
        if now - began < AFTER_SECONDS:
            return None
        self._finished = True
        ran, waited = self._times()
        ran, waited = ran - ran_before, waited - waited_before
        share = waited / max(ran + waited, 1.0)
        if share < NOTABLE_SHARE:
            return None
        return (
            f"other programs use these cores: its threads wait {share:.0%} of the time for one, so training takes "
            f"about {1 / (1 - share):.1f} times as long as on an idle machine"
        )

    def _times(self) -> tuple[float, float]:
        """The nanoseconds in which the threads of this process ran, and waited for a core."""
        pairs = [(int(ran), int(waited)) for ran, waited, _ in self._rows()]
        return float(sum(ran for ran, _ in pairs)), float(sum(waited for _, waited in pairs))

    def _rows(self) -> Iterator[list[str]]:
        for file in self._tasks.glob("*/schedstat"):
            try:
                row = file.read_text().split()
            except OSError:
                continue  # the thread has ended
            if len(row) == 3:
                yield row
