"""Shows the progress of long tasks: a bar with the remaining time on a terminal, plain lines elsewhere.

All output goes to standard error, so that standard output has only results. A long task takes a `Report` and calls it
as `report(done, total)` or `report(done, total, "loss 3.21")`.

    with Progress("scoring") as report:
        score_plain(model, tokens, 1024, progress=report)
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

PLAIN_SECONDS = 10.0
"""Seconds between plain lines."""

_plain = False
_silent = False


@runtime_checkable
class Report(Protocol):
    """The callback with which a long task reports its progress."""

    def __call__(self, done: float, total: float, note: str = "") -> None:
        """Report that `done` of `total` units are complete. `note` is shown next to the progress."""
        ...


def plain_lines(on: bool = True) -> None:
    """Print plain lines instead of bars, even on a terminal; `--json` uses this. `on=False` restores bars."""
    global _plain
    _plain = on


def silence() -> None:
    """Print no progress from now on, because another process reports it."""
    global _silent
    _silent = True


def is_silent() -> bool:
    """Whether `silence` was called."""
    return _silent


def duration(seconds: float) -> str:
    """Format `seconds` as `8 s`, `3 min 20 s` or `2 h 05 min`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


class Progress:
    """A context manager and `Report` that shows one bar, or one plain line every ten seconds.

    Arguments: `label`: the name of the task.
    """

    def __init__(self, label: str) -> None:
        self.label = label
        self._bar: RichProgress | None = None
        self._started = self._last_print = time.monotonic()
        self._lines = 0
        self._last_line = ""

    def __enter__(self) -> Progress:
        self._started = self._last_print = time.monotonic()
        if sys.stderr.isatty() and not _plain and not _silent:
            self._bar = _bar()
            self._bar.add_task(self.label, total=None, note="")
            self._bar.start()
        return self

    def __call__(self, done: float, total: float, note: str = "") -> None:
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total or None, note=f": {note}" * bool(note))
            return
        now = time.monotonic()
        fraction = min(max(done / total, 0.0), 1.0) if total > 0 else 0.0
        elapsed = now - self._started
        times = f"{_left(elapsed, fraction)}{duration(elapsed)} elapsed"
        self._last_line = f"{self.label}: {fraction:.0%}, {times}" + f", {note}" * bool(note)
        if now - self._last_print >= PLAIN_SECONDS:
            self._print_last(now)

    def say(self, line: str) -> None:
        """Print a separate line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        else:
            print_line(line)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif self._lines and self._last_line and kind is None:
            self._print_last(time.monotonic())

    def _print_last(self, now: float) -> None:
        self._last_print = now
        self._lines += 1
        print_line(self._last_line)
        self._last_line = ""


def _left(elapsed: float, fraction: float) -> str:
    """Return the time left, if the rest is as fast as the `fraction` that took `elapsed` seconds; empty at the ends."""
    return f"{duration(elapsed * (1 / fraction - 1))} left, " if 0 < fraction < 1 else ""


def _bar() -> RichProgress:
    """Return an empty bar. Only here Rich is imported, which takes a tenth of a second."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TaskProgressColumn, TextColumn
    from rich.table import Column
    from rich.text import Text

    class Times(ProgressColumn):
        """The time left, if it is known, and the time since the start."""

        def render(self, task: Task) -> Text:
            elapsed = task.elapsed or 0.0
            return Text(f"{_left(elapsed, task.percentage / 100)}{duration(elapsed)} elapsed")

    return Progress(
        TaskProgressColumn(
            "{task.percentage:>3.0f}%", "", style="none", table_column=Column(no_wrap=True, min_width=4)
        ),
        BarColumn(16, table_column=Column(no_wrap=True)),
        Times(table_column=Column(no_wrap=True)),
        # Only the task and its note are cut on a narrow terminal.
        TextColumn(
            "{task.description}{task.fields[note]}",
            markup=False,
            table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1),
        ),
        console=Console(file=sys.stderr),
        expand=True,
    )


def print_line(line: str) -> None:
    """Print `line`, unless `silence` was called."""
    if not _silent:
        print(line, file=sys.stderr, flush=True)
