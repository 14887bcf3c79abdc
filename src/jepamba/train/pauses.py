"""Tells a pause of the machine, such as Ctrl-Z or a laptop that sleeps, from a slow step."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Hashable

FACTOR, SECONDS = 20, 10.0
"""A step longer than both this many times the usual duration and this many seconds contains a pause."""
FIRST, KEPT = 10, 21
"""Steps without a verdict after the start and after a change, and steps whose median is the usual duration."""


class PauseDetector:
    """Watches the durations of the steps of this process."""

    def __init__(self) -> None:
        self._recent: deque[float] = deque(maxlen=KEPT)
        self._work: Hashable = None

    def usual(self, seconds: float, work: Hashable) -> float | None:
        """Return the usual duration of a step if this one, of `seconds`, contains a pause, else None.

        A change of `work`, which says what a step computes, starts anew: its first steps may compile or capture graphs.
        Every step counts for the median, so that a machine that has become slow is not one that pauses for ever.
        """
        if work != self._work:
            self._work = work
            self._recent.clear()
        usual = statistics.median(self._recent) if len(self._recent) >= FIRST else None
        self._recent.append(seconds)
        return usual if usual is not None and seconds > max(SECONDS, FACTOR * usual) else None
