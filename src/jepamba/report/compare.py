"""One page of many runs: their scores, curves, different settings and samples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
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

SCORES = {"bpb_calibrated": "plain windows", "bpb_sliding": "sliding windows", "bpb_carried": "state carried"}
"""The scores of a run by their keys in summary.json. Those of one kind compare, if they are of the same text."""
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

    Returns: the figures of each run for JSON; null for what is not known yet. `differs` has the scores that do not
    compare with those of the other runs, each with what it is of; see `score_cells`.
    Raises: `UserError` if a folder holds no run.
    """
    runs = _read(folders)
    atomic_write(out, page.page(f"{len(runs)} runs: jepamba", _body(runs)).encode("utf-8", errors="replace"))
    return _figures(runs)


def score_cells(figures: Sequence[Record]) -> tuple[list[str], list[list[str]], list[str]]:
    """Return the kinds of scores that any of the runs has, the scores of each run as text, and notes on them.

    A score has an asterisk if it is of another text, or of another part of it, than most scores of its kind. Each such
    score has a note.
    """
    shown = [key for key in SCORES if any(found[key] is not None for found in figures)]
    cells, notes = [], []
    for found in figures:
        marks = {key: "*" if key in found["differs"] else "" for key in shown}
        cells.append(["–" if found[key] is None else f"{found[key]:.4f}{marks[key]}" for key in shown])
        notes += [f"{found['run']}, {SCORES[key]}: {of}" for key, of in found["differs"].items()]
    if notes:
        notes.insert(
            0, "* does not compare with the other scores of its kind, which are of other text or measured otherwise:"
        )
    if len(shown) > 1:
        notes.append("Scores of different kinds do not compare: the wider the context, the lower the figure.")
    return [SCORES[key] for key in shown], cells, notes


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


def _figures(runs: Sequence[_Run]) -> list[Record]:
    differs = [_differing(runs, key) for key in SCORES]
    found = []
    for index, run in enumerate(runs):
        scores = {key: number(section_of(run.summary, key).get("bpb")) for key in SCORES}
        last = run.metrics.steps[-1] if run.metrics.steps else {}
        counts = {
            key: number(run.summary.get(key, last.get(key))) for key in ("steps", "tokens", "seconds", "artifact_bytes")
        }
        counts["steps"] = counts["steps"] or number(last.get("step"))
        others = {key: of[index] for key, of in zip(SCORES, differs, strict=True) if index in of}
        parameters = number(section_of(run.summary, "parameters").get("kept"))
        found.append(
            {
                "run": run.label,
                "finished": bool(run.summary),
                **scores,
                "differs": others,
                **counts,
                "parameters": parameters,
            }
        )
    return found


def _differing(runs: Sequence[_Run], key: str) -> dict[int, str]:
    """Return what the scores `key` are of, by the index of the run, if that differs from most of the others."""
    kinds = {}
    for index, run in enumerate(runs):
        score = section_of(run.summary, key)
        if number(score.get("bpb")) is not None:
            stride = run.settings.get("eval.stride") if key == "bpb_sliding" else None
            decoded = score.get("counted") == "decoded"
            kinds[index] = (score.get("bytes"), decoded, score.get("reset"), stride)
    common = Counter(kinds.values()).most_common(2)
    alike = common[0][0] if len(common) == 1 or (common and common[0][1] > common[1][1]) else None
    return {
        index: _described(section_of(runs[index].summary, key), kind) for index, kind in kinds.items() if kind != alike
    }


def _described(score: Mapping[str, Any], kind: tuple[Any, ...]) -> str:
    """Say what a score is of: `6,232 tokens, 19,795 bytes, stride 16`."""
    size, decoded, reset, stride = kind
    counts = [
        f"{count:,.0f} {unit}"
        for unit, value in (("tokens", score.get("tokens")), ("bytes", size))
        if (count := number(value)) is not None
    ]
    return ", ".join(
        [
            *counts,
            *(["counted in the decoded text"] if decoded else []),
            *([f"stride {stride}"] if stride else []),
            *(["not reset at document starts"] if reset is False else []),
        ]
    )


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
        *_table(runs, len(texts) <= 1),
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


def _table(runs: Sequence[_Run], comparable: bool) -> list[str]:
    """Return the table of the runs and its notes. The best plain score is bold if all are `comparable`."""
    figures = _figures(runs)
    kinds, cells, notes = score_cells(figures)
    heads = ["run", *(f"BPB, {kind}" for kind in kinds)]
    heads += ["training", "steps", "tokens", "parameters", "artifact bytes", "started"]
    rows: list[list[Any]] = [
        [
            found["run"],
            *scores,
            None if found["seconds"] is None else duration(found["seconds"]),
            *(found[key] for key in ("steps", "tokens", "parameters", "artifact_bytes")),
            date(run.start.get("time")) or None,
        ]
        for run, found, scores in zip(runs, figures, cells, strict=True)
    ]
    plain = [(found["bpb_calibrated"], index) for index, found in enumerate(figures)]
    best = min(((score, index) for score, index in plain if score is not None), default=(None, None))[1]
    return [
        page.table("", heads, rows, highlight=best if comparable else None),
        *(f"<p class='mute'>{page.text(note)}</p>" for note in notes),
    ]


def _settings(runs: Sequence[_Run]) -> str:
    names = sorted({name for run in runs for name in run.settings})
    rows = [[name, *(run.settings.get(name) for run in runs)] for name in names]
    different = [row for row in rows if any(value != row[1] for value in row[2:])]
    return page.table("", ["setting", *(run.label for run in runs)], different)


def _samples(runs: Sequence[_Run]) -> list[tuple[str, str, str]]:
    found = [(run.label, sample) for run in runs for sample in records_in(run.summary.get("samples"))[:1]]
    return [(label, str(sample.get("prompt", "")), str(sample.get("text", ""))) for label, sample in found]
