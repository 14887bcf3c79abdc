"""Progress of anything that takes longer than a moment: a bar with the time left on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output holds results alone. Long work takes a `Report` and calls it
as `report(done, total)` or `report(done, total, "loss 3.21")`; it never learns who is listening.

    with Progress("scoring") as report:
        score_plain(model, tokens, 1024, progress=report)
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress
from rich.table import Column

PLAIN_SECONDS = 10.0
"""Seconds between plain lines."""

_plain = False
_silent = False


@runtime_checkable
class Report(Protocol):
    """What long work calls to say how far it is."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """`done` of `total`, in any one unit; `note` is shown beside it."""
        ...


def plain_lines(on: bool = True) -> None:
    """From now on no bars, even on a terminal (`on`), or bars where there is a terminal: `--json` asks for lines."""
    global _plain
    _plain = on


def silence() -> None:
    """From now on nothing at all: another process speaks for this one."""
    global _silent
    _silent = True


def is_silent() -> bool:
    """Whether another process speaks for this one."""
    return _silent


def duration(seconds: float) -> str:
    """`seconds` as a person says it: `8 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """A context that is itself a `Report`: one bar, or one plain line every ten seconds.

    Arguments: `label`, what is being done.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: RichProgress | None = None
        self._started = self._spoke = time.monotonic()
        self._lines = 0
        self._last = ""

    def __enter__(self) -> Progress:
        self._started = self._spoke = time.monotonic()
        if sys.stderr.isatty() and not _plain and not _silent:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(24),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                # Last and cut short: on a narrow terminal the note gives way, not the bar.
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=Console(file=sys.stderr),
            )
            self._bar.add_task(self.label, total=None, note="")
            self._bar.start()
        return self

    def __call__(self, done: float, total: float, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, note=note)
            return
        now = time.monotonic()
        share = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        left = f", {duration((now - self._started) * (1 / share - 1))} left" if 0 < share < 1 else ""
        self._last = f"{self.label}: {share:.0%} after {duration(now - self._started)}{left}" + (
            f", {note}" * bool(note)
        )
        if now - self._spoke >= PLAIN_SECONDS:
            self._say(now)

    def say(self, line: str) -> None:
        """Print a line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            _print(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._lines and self._last and kind is None:
            self._say(time.monotonic())

    def _say(self, now: float) -> None:
        self._spoke = now
        self._lines += 1
        _print(self._last)
        self._last = ""


def _print(line: str) -> None:
    if not _silent:
        print(line, file=sys.stderr, flush=True)
