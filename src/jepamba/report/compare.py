"""One page of many runs: their scores, curves, different settings and samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepamba.config import flatten
from jepamba.errors import UserError
from jepamba.io import atomic_write
from jepamba.progress import duration
from jepamba.report import page
from jepamba.report.html import compressor_levels, scaled, time_unit
from jepamba.report.plots import Line, chart, line, thin
from jepamba.report.records import (
    Metrics,
    Record,
    number,
    read_config,
    read_metrics,
    read_summary,
    records_in,
    section_of,
    series,
    with_train_bpb,
)
from jepamba.report.run_facts import date

_SCORES = {"bpb_calibrated": "BPB", "bpb_sliding": "sliding windows", "bpb_carried": "state carried"}
_MAX_MEANS = 150


@dataclass(frozen=True)
class _Run:
    label: str
    metrics: Metrics
    summary: Record
    """Empty for a run in progress."""
    settings: Record
    """By their dotted names."""

    @property
    def start(self) -> Record:
        return self.metrics.starts[0] if self.metrics.starts else {}


def compare_runs(folders: Sequence[Path], out: Path) -> list[Record]:
    """Write a page that compares the runs in `folders` to `out`.

    Returns: the figures of each run for JSON; null for what is not known yet.
    Raises: `UserError` if a folder holds no run.
    """
    runs = _read(folders)
    atomic_write(out, page.page(f"{len(runs)} runs: jepamba", _body(runs)).encode("utf-8", errors="replace"))
    return [_figures(run) for run in runs]


def _read(folders: Sequence[Path]) -> list[_Run]:
    for folder in folders:
        if not (folder / "config.toml").is_file():
            raise UserError(f"{folder}: no run here; give the folders of runs (--out of `jepamba train`)")
    names = [folder.resolve().name for folder in folders]
    labels = names if len(set(names)) == len(names) else [str(folder) for folder in folders]
    return [
        _Run(
            label,
            read_metrics(folder / "metrics.jsonl"),
            read_summary(folder) or {},
            flatten(read_config(folder) or {}),
        )
        for label, folder in zip(labels, folders, strict=True)
    ]


def _figures(run: _Run) -> Record:
    found, last = run.summary, run.metrics.steps[-1] if run.metrics.steps else {}
    scores = {key: number(section_of(found, key).get("bpb")) for key in _SCORES}
    counts = {key: number(found.get(key, last.get(key))) for key in ("steps", "tokens", "seconds", "artifact_bytes")}
    counts["steps"] = counts["steps"] or number(last.get("step"))
    parameters = number(section_of(found, "parameters").get("kept"))
    return {"run": run.label, "finished": bool(found), **scores, **counts, "parameters": parameters}


def _body(runs: Sequence[_Run]) -> list[str]:
    times = [x for run in runs for x, _ in series(run.metrics.steps, "seconds", "seconds")]
    scale, unit = time_unit(max(times, default=0.0))
    time_label = f"training time ({unit})"
    training = []
    for index, run in enumerate(runs):
        points = scaled(series(with_train_bpb(run.metrics.steps), "seconds", "train_bpb"), scale)
        training.append(line(run.label, thin(points, _MAX_MEANS), index))
    texts = {size for run in runs if (size := section_of(run.summary, "bpb_plain").get("bytes")) is not None}
    levels = next((found for run in runs if (found := compressor_levels(run.summary))), [])
    return [
        f"<h1>{len(runs)} runs compared</h1>",
        "<p>Bits per byte (BPB) are of held-out text unless training text is named. Lower is better.</p>",
        "<p><b>The runs were scored on different texts, so their figures do not compare.</b></p>" * (len(texts) > 1),
        _table(runs),
        chart(
            "Held-out text over time",
            time_label,
            "bits per byte",
            _held_out(runs, "seconds", scale),
            levels=levels if len(texts) == 1 else (),
            clip=True,
            height=380,
        ),
        page.charts(
            [
                chart("Held-out text over steps", "step", "bits per byte", _held_out(runs, "step"), clip=True),
                chart("Training text", time_label, "bits per byte", training, clip=True),
            ]
        ),
        page.section("Settings that differ", _settings(runs)),
        page.section("What the finished models write", page.samples(_samples(runs))),
    ]


def _held_out(runs: Sequence[_Run], x: str, unit: float = 1.0) -> list[Line]:
    """Return for each run its validations during training, and its finished artifact as a point."""
    lines = []
    for index, run in enumerate(runs):
        for label, final in ((run.label, False), (f"{run.label}, finished", True)):
            vals = [record for record in run.metrics.vals if bool(record.get("final")) is final]
            lines.append(line(label, scaled(series(vals, x, "bpb"), unit), index, dots=True))
    return lines


def _table(runs: Sequence[_Run]) -> str:
    figures = [_figures(run) for run in runs]
    shown = {key: label for key, label in _SCORES.items() if any(found[key] is not None for found in figures)}
    heads = ["run", *shown.values(), "training", "steps", "tokens", "parameters", "artifact bytes", "started"]
    rows: list[list[Any]] = [
        [
            found["run"],
            *(f"{found[key]:.4f}" if found[key] is not None else None for key in shown),
            None if found["seconds"] is None else duration(found["seconds"]),
            *(found[key] for key in ("steps", "tokens", "parameters", "artifact_bytes")),
            date(run.start.get("time")) or None,
        ]
        for run, found in zip(runs, figures, strict=True)
    ]
    scores = [found["bpb_calibrated"] for found in figures]
    best = min((score, index) for index, score in enumerate(scores) if score is not None)[1] if any(scores) else None
    return page.table("", heads, rows, highlight=best)


def _settings(runs: Sequence[_Run]) -> str:
    names = sorted({name for run in runs for name in run.settings})
    rows = [[name, *(run.settings.get(name) for run in runs)] for name in names]
    different = [row for row in rows if any(value != row[1] for value in row[2:])]
    return page.table("", ["setting", *(run.label for run in runs)], different)


def _samples(runs: Sequence[_Run]) -> list[tuple[str, str, str]]:
    found = [(run.label, sample) for run in runs for sample in records_in(run.summary.get("samples"))[:1]]
    return [(label, str(sample.get("prompt", "")), str(sample.get("text", ""))) for label, sample in found]
