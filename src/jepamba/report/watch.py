"""A run's curves for the terminal: training and held-out bits per byte, learning rate, speed, and how far it is."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from jepamba.errors import UserError
from jepamba.progress import duration
from jepamba.report.records import (
    Metrics,
    MetricsFile,
    Record,
    number,
    read_config,
    read_summary,
    series,
    with_train_bpb,
)
from jepamba.report.terminal import Points, curve, figure

_SILENT = 120.0
"""Seconds without a line after which a run that is not finished is said to be silent."""
_MOST_POINTS = 400
"""Points of a curve in JSON."""
_HEIGHT = 10


@dataclass(frozen=True)
class Watched:
    """What a run's folder says now."""

    folder: Path
    metrics: Metrics
    summary: Record | None
    share: float | None
    """Of the budget that is spent, 0 to 1; None where config.toml does not say."""
    silent_s: float
    """Seconds since the last line."""

    @property
    def finished(self) -> bool:
        """Whether the run is packed and scored."""
        return self.summary is not None

    @property
    def state(self) -> str:
        """finished, running, or silent: nothing was written for a while."""
        if self.finished:
            return "finished"
        return "running" if self.silent_s < _SILENT else "silent"

    def curves(self) -> dict[str, Points]:
        """(step, value) by what it is; a curve may be empty."""
        steps = self.metrics.steps
        return {
            "training, bits per byte": series(with_train_bpb(steps), "step", "train_bpb"),
            "training, nats per token": series(steps, "step", "ce"),
            "held-out text, bits per byte": series(self.metrics.vals, "step", "bpb"),
            "learning rate, share of its peak": series(steps, "step", "lr_scale"),
            "tokens a second": series(steps, "step", "tokens_per_s"),
        }

    def as_json(self) -> dict[str, Any]:
        """State, last values and thinned curves as plain JSON."""
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


class Watch:
    """Reads the folder of a run again and again, each time only what is new. Raises `UserError` if it holds no run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = MetricsFile(folder / "metrics.jsonl")
        if not (folder / "config.toml").exists() and not self._file.path.exists():
            raise UserError(f"{folder}: no run there; give the folder that `jepamba train` was told with --out")

    def look(self) -> Watched:
        """What there is now."""
        summary = read_summary(self.folder)
        metrics = self._file.read(ended=summary is not None)
        try:
            silent = max(time.time() - os.path.getmtime(self._file.path), 0.0)
        except OSError:
            silent = 0.0
        return Watched(self.folder, metrics, summary, _share(metrics, read_config(self.folder)), silent)


class Picture:
    """A `Watched` as rich draws it: one line of figures, and its curves side by side where there is room."""

    def __init__(self, watched: Watched) -> None:
        self.watched = watched

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        side_by_side = 2 if options.max_width >= 80 else 1
        width = options.max_width // side_by_side - 4
        table = Table.grid(expand=True)
        for _ in range(side_by_side):
            table.add_column(ratio=1)
        panels: list[RenderableType] = []
        for name, points in self.watched.curves().items():
            # Cross-entropy has the same shape as the bits per byte; it stands in for them where no bytes are logged.
            if points and (name != "training, nats per token" or not panels):
                lines = curve(points, width, _HEIGHT, options.ascii_only)
                title = f"{name}: {figure(points[-1][1])}"
                panels.append(Panel(Text("\n".join(lines), no_wrap=True), title=title, title_align="left"))
        for start in range(0, len(panels), side_by_side):
            table.add_row(*panels[start : start + side_by_side])
        yield Group(Text(headline(self.watched)), table if panels else Text("no step yet"))


def headline(watched: Watched) -> str:
    """The run in one line."""
    last = watched.metrics.steps[-1] if watched.metrics.steps else {}
    parts = [f"{watched.folder.resolve().name}: {watched.state}"]
    if watched.state == "silent":
        parts[0] += f" for {duration(watched.silent_s)}"
    if last:
        parts.append(f"step {last['step']:,}")
    seconds, tokens, ce = (number(last.get(key)) for key in ("seconds", "tokens", "ce"))
    if seconds is not None:
        parts.append(f"{duration(seconds)} of training")
    if tokens is not None:
        parts.append(f"{figure(tokens)} tokens")
    if ce is not None:
        parts.append(f"{ce:.3f} nats per token")
    if watched.share is not None and not watched.finished and watched.share > 0 and seconds is not None:
        left = seconds / watched.share * (1 - watched.share)
        parts.append(f"{watched.share:.0%} of the budget, {duration(left)} left")
    held_out = series(watched.metrics.vals, "step", "bpb")
    if held_out:
        parts.append(f"{held_out[-1][1]:.4f} BPB at step {held_out[-1][0]:,.0f}")
    return ", ".join(parts)


def _share(metrics: Metrics, config: Record | None) -> float | None:
    settings = (config or {}).get("train")
    last = metrics.steps[-1] if metrics.steps else {}
    if not isinstance(settings, dict):
        return None
    shares = []
    for budget, done in (("steps", "step"), ("seconds", "seconds")):
        whole, spent = number(settings.get(budget)), number(last.get(done))
        if whole and spent is not None:
            shares.append(min(spent / whole, 1.0))
    return max(shares, default=None)


def _thinned(points: Points) -> Points:
    """At most `_MOST_POINTS` of `points`, evenly, with the last."""
    every = -(-len(points) // _MOST_POINTS)
    return points if every <= 1 else [*points[:-1:every], points[-1]]
