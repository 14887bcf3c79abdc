"""The terminal view of a run: curves of BPB, learning rate and speed, and the progress."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jepamba.config import BUDGETS
from jepamba.errors import UserError
from jepamba.progress import duration
from jepamba.report.records import (
    STOPPED,
    Metrics,
    MetricsFile,
    Record,
    number,
    read_config,
    read_summary,
    series,
    with_train_bpb,
)
from jepamba.report.terminal import Points, plot_curve, short_number
from jepamba.text.unrestored import bpb_unit

_SILENT_SECONDS = 120.0
"""Seconds without a log line after which an unfinished run counts as silent."""
_MAX_POINTS = 400
"""Maximum number of points of a curve in JSON."""
_CURVE_LINES, _LEAST_LINES = 10, 4
"""Lines of a curve, and the fewest in a terminal that is not high enough for all of them."""
_FRAME_LINES = 2


@dataclass(frozen=True)
class RunStatus:
    """The current state of a run, as its folder shows it."""

    folder: Path
    metrics: Metrics
    summary: Record | None
    share: float | None
    """Spent share of the budget, 0 to 1; None if config.toml has no budget."""
    silent_s: float
    """Seconds since the last log line."""

    @property
    def finished(self) -> bool:
        """Whether the run has a summary, which it writes after packing and scoring."""
        return self.summary is not None

    @property
    def state(self) -> str:
        """`finished`, `running`, `stopped` by a signal, or `silent`: no log line for two minutes."""
        if self.finished:
            return "finished"
        if self.metrics.events and str(self.metrics.events[-1].get("what")).startswith(STOPPED):
            return "stopped"
        return "running" if self.silent_s < _SILENT_SECONDS else "silent"

    def curves(self) -> dict[str, Points]:
        """Return the curves by title, as points (step, value). A curve may be empty."""
        steps = self.metrics.steps
        return {
            "training, bits per byte": series(with_train_bpb(steps), "step", "train_bpb"),
            "training, nats per token": series(steps, "step", "ce"),
            "held-out text, bits per byte": series(self.metrics.vals, "step", "bpb"),
            "learning rate, share of its peak": series(steps, "step", "lr_scale"),
            "tokens per second": series(steps, "step", "tokens_per_s"),
        }

    def as_json(self) -> dict[str, Any]:
        """Return the state, the last values and the thinned curves for JSON."""
        last = self.metrics.steps[-1] if self.metrics.steps else {}
        curves = {name: [list(point) for point in _thinned(points)] for name, points in self.curves().items()}
        return {
            "folder": str(self.folder),
            "state": self.state,
            "step": last.get("step", 0),
            "seconds": number(last.get("seconds")),
            "tokens": number(last.get("tokens")),
            "share": self.share,
            "silent_s": self.silent_s,
            "curves": curves,
        }


class RunWatcher:
    """Polls the folder of a run and reads only new lines. Raises `UserError` if the folder holds no run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = MetricsFile(folder / "metrics.jsonl")
        if not (folder / "config.toml").exists() and not self._file.path.exists():
            raise UserError(f"{folder}: no run here; give the folder of a run (--out of `jepamba train`)")

    def poll(self) -> RunStatus:
        """Read what is new and return the current status."""
        summary = read_summary(self.folder)
        metrics = self._file.read(ended=summary is not None)
        try:
            silent = max(time.time() - os.path.getmtime(self._file.path), 0.0)
        except OSError:
            silent = 0.0
        return RunStatus(self.folder, metrics, summary, _budget_share(metrics, read_config(self.folder)), silent)


class RunView:
    """A rich renderable of a `RunStatus`: one line of numbers, and the curves in one or two columns."""

    def __init__(self, status: RunStatus) -> None:
        self.status = status

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        columns = 2 if options.max_width >= 80 else 1
        width = options.max_width // columns - 4
        table = Table.grid(expand=True)
        for _ in range(columns):
            table.add_column(ratio=1)
        curves = {name: points for name, points in self.status.curves().items() if points}
        if "training, bits per byte" in curves:
            # Cross-entropy has the same shape. It is shown only if the log has no byte counts.
            curves.pop("training, nats per token", None)
        title = Text("\n".join(_filled(_fields(self.status), options.max_width)))
        height, shown = _CURVE_LINES, len(curves)
        if console.is_terminal and curves:
            # One line is left for the cursor.
            available = options.max_height - len(console.render_lines(title, options)) - 1
            rows = max(min(-(-shown // columns), available // (_LEAST_LINES + _FRAME_LINES)), 1)
            height, shown = min(max(available // rows - _FRAME_LINES, _LEAST_LINES), _CURVE_LINES), rows * columns
        panels: list[RenderableType] = []
        for name, points in list(curves.items())[:shown]:
            lines = "\n".join(plot_curve(points, width, height, options.ascii_only))
            heading = _heading(name, short_number(points[-1][1]), width - 2)
            panels.append(Panel(Text(lines, no_wrap=True), title=heading, title_align="left"))
        for start in range(0, len(panels), columns):
            table.add_row(*panels[start : start + columns])
        yield Group(title, table if panels else Text("no step yet"))


def headline(status: RunStatus) -> str:
    """Return the status of a run in one line."""
    return ", ".join(_fields(status))


def _fields(status: RunStatus) -> list[str]:
    last = status.metrics.steps[-1] if status.metrics.steps else {}
    fields = [f"{status.folder.resolve().name}: {status.state}"]
    if status.state == "silent":
        fields[0] += f" for {duration(status.silent_s)}"
    if last:
        fields.append(f"step {last['step']:,}")
    seconds, tokens, ce = (number(last.get(key)) for key in ("seconds", "tokens", "ce"))
    if seconds is not None:
        fields.append(f"{duration(seconds)} of training")
    if tokens is not None:
        fields.append(f"{short_number(tokens)} tokens")
    if ce is not None:
        fields.append(f"{ce:.3f} nats per token")
    if status.share == 1 and not status.finished:
        fields.append("the budget is spent: packing and scoring")
    elif status.share is not None and not status.finished and status.share > 0 and seconds is not None:
        remaining = seconds / status.share * (1 - status.share)
        fields.append(f"{status.share:.0%} of the budget, {duration(remaining)} left")
    if status.state == "stopped":
        fields.append(f"`jepamba resume {status.folder}` continues it")
    vals = status.metrics.vals
    held_out, unit = series(vals, "step", "bpb"), bpb_unit(vals[-1].get("counted") if vals else None)
    if held_out:
        fields.append(f"{held_out[-1][1]:.4f} {unit} at step {held_out[-1][0]:,.0f}")
    return fields


def _filled(fields: Sequence[str], width: int) -> list[str]:
    """Join `fields` with commas to lines of at most `width` characters. A line ends only after a field."""
    lines = [""]
    for count, field in enumerate(fields, start=1):
        piece = field + "," * (count < len(fields))
        if lines[-1] and len(lines[-1]) + 1 + len(piece) > width:
            lines.append("")
        lines[-1] += " " * bool(lines[-1]) + piece
    return lines


def _heading(name: str, figure: str, width: int) -> str:
    """Return the title of a curve. One that is longer than `width` begins with the figure, since its end is cut."""
    short = name.replace("bits per byte", "BPB").replace("share of its peak", "of peak")
    fitting = [title for title in (f"{name}: {figure}", f"{short}: {figure}") if len(title) <= width]
    return fitting[0] if fitting else f"{figure} {short}"


def _budget_share(metrics: Metrics, config: Record | None) -> float | None:
    settings = (config or {}).get("train")
    last = metrics.steps[-1] if metrics.steps else {}
    if not isinstance(settings, dict):
        return None
    shares = []
    for budget, counter in BUDGETS.items():
        budgeted, spent = number(settings.get(budget)), number(last.get(counter))
        if budgeted and spent is not None:
            shares.append(min(spent / budgeted, 1.0))
    return max(shares, default=None)


def _thinned(points: Points) -> Points:
    """Return about `_MAX_POINTS` of `points`, evenly spaced, and the last."""
    stride = -(-len(points) // _MAX_POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]
