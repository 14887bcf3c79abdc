"""report.html of a run, from its metrics.jsonl, summary.json and config.toml.

The report of a run in progress shows the curves so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jepamba.io import atomic_write
from jepamba.progress import duration
from jepamba.report import page
from jepamba.report.passage import passage
from jepamba.report.plots import Level, Line, Points, chart, thin
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
from jepamba.report.run_facts import facts
from jepamba.text.near_duplicates import overlap_in_words
from jepamba.text.unrestored import bpb_unit

_TRAINING_ONLY = {"projector", "predictor", "predictor projection"}
_LOSSES = {"ce": "cross-entropy", "jepa": "latent prediction", "sigreg": "SIGReg", "vicreg": "VICReg"}
_NORMS = {
    "grad_ce": "cross-entropy",
    "grad_jepa": "latent prediction",
    "grad_sigreg": "SIGReg",
    "grad_vicreg": "VICReg",
}
_RATES = {"muon_lr": "Muon", "adam_lr": "AdamW"}
_MEASURES = {
    "top1": "targets that are the most likely token",
    "top5": "targets among the 5 most likely tokens",
    "top10": "targets among the 10 most likely tokens",
    "latents.norm": "norm of a latent",
    "latents.mean_share": "share of the mean latent in the mean squared norm",
    "latents.within_sequence": "share of the variance of latents within windows",
    "latents.effective_rank": "effective rank of the latents",
    "latents.width": "its maximum, the width of the latents",
    "h.norm": "norm of h, which the head reads",
    "h.mean_share": "share of the mean of h in its mean squared norm",
    "h.within_sequence": "share of the variance of h within windows",
    "h.effective_rank": "effective rank of h",
    "h.width": "its maximum, the width of h",
    "probe.next_class": "class of the next token, right by a linear probe of the latent",
    "probe.next_class_from_token": "the same by a probe of the current token alone",
    "probe.next_class_majority": "the same by the most frequent class",
    "probe.next_embedding_r2": "R² of the next token's embedding by a linear probe of the latent",
    "probe.next_embedding_r2_from_token": "the same by a probe of the current token alone",
}
"""Words for the diagnostics in summary.json that evaluate.diagnostics computes."""
_MAX_MEANS = 100
"""Points of the training curve of the first chart, each a mean of neighbours."""


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html, one self-contained file, and return its path.

    The report omits missing, truncated and non-numeric values, and escapes all text from the files.
    """
    text = page.page(f"{run_dir.resolve().name}: jepamba", _body(run_dir))
    path = run_dir / "report.html"
    atomic_write(path, text.encode("utf-8", errors="replace"))
    return path


def _body(run_dir: Path) -> list[str]:
    metrics, summary, config = read_metrics(run_dir / "metrics.jsonl"), read_summary(run_dir), read_config(run_dir)
    results = summary or {}
    return [
        f"<h1>{page.text(run_dir.resolve().name)}</h1>",
        f"<p>{page.text(_state(metrics, summary))}</p>",
        page.facts(facts(metrics, results, config or {})),
        page.tiles(_key_values(metrics, results)),
        _bpb_chart(metrics, results),
        page.section("What the model writes", page.samples(_samples(metrics, results))),
        page.section("Bits per byte of a passage", passage(section_of(results, "passage"))),
        page.section("Comparison with general-purpose compressors", _baselines(results)),
        page.section("Training", page.charts(_training_charts(metrics))),
        page.section(
            "Where the bytes are",
            page.shares("Packed artifact before entropy coding", "bytes", section_of(results, "bytes_by_part")),
            page.shares("Network", "parameters", _parameters(results)),
        ),
        page.section(
            "Details",
            page.details("Measures of the latents and of the head", *_diagnostics(section_of(results, "diagnostics"))),
            page.details("Settings", _config(run_dir) if config is not None else ""),
            page.details("Events", _events(metrics)),
        ),
    ]


def _state(metrics: Metrics, summary: Record | None) -> str:
    last = metrics.steps[-1] if metrics.steps else {}
    seconds = number(last.get("seconds"))
    elapsed = f" after {duration(seconds)} of training" if seconds is not None else ""
    broken = f" {metrics.broken} lines of metrics.jsonl are incomplete and were skipped." if metrics.broken else ""
    if summary is not None:
        return (
            "This run is finished. Bits per byte (BPB) are of held-out text, except for the curve of the training "
            f"text. Lower is better.{broken}"
        )
    return f"This run has no summary yet. It is at step {last.get('step', 0)}{elapsed}.{broken}"


def _key_values(metrics: Metrics, summary: Record) -> list[tuple[str, str]]:
    plain = section_of(summary, "bpb_plain")
    unit = bpb_unit(plain.get("counted"))
    bpb = {
        f"{unit} at the calibrated temperature": section_of(summary, "bpb_calibrated").get("bpb"),
        f"{unit}, plain windows": plain.get("bpb"),
        f"{unit}, sliding windows": section_of(summary, "bpb_sliding").get("bpb"),
        f"{unit}, state carried": section_of(summary, "bpb_carried").get("bpb"),
    }
    if plain.get("bpb_decoded") != plain.get("bpb"):
        bpb["BPB, plain windows, by decoded bytes"] = plain.get("bpb_decoded")
    if section_of(summary, "bpb_calibrated").get("bpb") == plain.get("bpb"):
        del bpb[f"{unit} at the calibrated temperature"]
    if not summary and metrics.vals:
        bpb = {f"{bpb_unit(metrics.vals[-1].get('counted'))} at the last validation": metrics.vals[-1].get("bpb")}
    counts = {
        "artifact bytes": summary.get("artifact_bytes"),
        "parameters in the artifact": section_of(summary, "parameters").get("kept"),
        "training-only parameters": section_of(summary, "parameters").get("training_only") or None,
        "steps": summary.get("steps"),
        "tokens seen": summary.get("tokens"),
    }
    rows = [(label, f"{value:.4f}") for label, raw in bpb.items() if (value := number(raw)) is not None]
    if (seconds := number(summary.get("seconds"))) is not None:
        rows.append(("training time", duration(seconds)))
    return rows + [(label, f"{value:,.0f}") for label, raw in counts.items() if (value := number(raw)) is not None]


def _bpb_chart(metrics: Metrics, summary: Record) -> str:
    """Draw BPB over training time, with a horizontal line for each compressor."""
    steps, vals = with_train_bpb(metrics.steps), [record for record in metrics.vals if not record.get("final")]
    scale, unit = time_unit(max((x for x, _ in series(steps + metrics.vals, "seconds", "seconds")), default=0.0))
    final = series([record for record in metrics.vals if record.get("final")], "seconds", "bpb")
    lines = [
        Line("training text", thin(scaled(series(steps, "seconds", "train_bpb"), scale), _MAX_MEANS), 1, faint=True),
        Line("held-out text", scaled(series(vals, "seconds", "bpb"), scale), 2, dots=True),
        Line("finished artifact, all held-out text", scaled(final, scale), 3, dots=True),
    ]
    return chart(
        "Bits per byte during training",
        f"training time ({unit})",
        "bits per byte",
        lines,
        levels=compressor_levels(summary),
        clip=True,
        height=380,
    )


def time_unit(seconds: float) -> tuple[float, str]:
    """Return the seconds in a unit, and the unit, for an axis up to `seconds`."""
    return (1.0, "s") if seconds < 180 else (60.0, "min") if seconds < 10_800 else (3600.0, "h")


def scaled(points: Points, unit: float) -> Points:
    """Return `points` with x divided by `unit`."""
    return [(x / unit, y) for x, y in points]


def compressor_levels(summary: Record) -> list[Level]:
    """Return a level for each compressor in the summary, and the best that has the training text as history."""
    rows = records_in(summary.get("baselines"))
    levels = [Level(str(row.get("compressor")), bpb) for row in rows if (bpb := number(row.get("bpb"))) is not None]
    informed = [
        (bpb, str(row.get("compressor"))) for row in rows if (bpb := number(row.get("bpb_with_history"))) is not None
    ]
    return levels + [Level(f"{name} with the training text", bpb) for bpb, name in sorted(informed)[:1]]


def _training_charts(metrics: Metrics) -> list[str]:
    steps = metrics.steps

    def lines(records: list[Record], keys: Mapping[str, str]) -> list[Line]:
        found = [
            Line(label, series(records, "step", key), colour) for colour, (key, label) in enumerate(keys.items(), 1)
        ]
        return [item for item in found if any(y != 0 for _, y in item.points)]

    norms = [*lines(metrics.terms, _NORMS), *lines(steps, {"grad_norm": "all, before clipping"})]
    if len(norms) > 1:
        norms[-1] = Line(norms[-1].label, norms[-1].points, 5, faint=True)
    return [
        chart("Losses", "step", "unweighted", lines(steps, _LOSSES), log_y=True),
        chart("Gradient norms", "step", "norm", norms, log_y=True),
        chart("Learning rates", "step", "rate", lines(steps, _RATES)),
        chart("Speed", "step", "tokens per second", lines(steps, {"tokens_per_s": "tokens per second"})),
    ]


def _samples(metrics: Metrics, summary: Record) -> list[tuple[str, str, str]]:
    """Return the samples taken during training, then those of the finished artifact."""
    seconds = {record["step"]: number(record.get("seconds")) for record in metrics.steps}
    bpb = {record["step"]: number(record.get("bpb")) for record in metrics.vals}
    rows = []
    for record in metrics.samples:
        step = record["step"]
        when = [f"step {step:,}"]
        when += [duration(passed)] if (passed := seconds.get(step)) is not None else []
        when += [f"{score:.3f} BPB"] if (score := bpb.get(step)) is not None else []
        rows.append((", ".join(when), *_sample(record)))
    return rows + [("finished", *_sample(record)) for record in records_in(summary.get("samples"))]


def _sample(record: Record) -> tuple[str, str]:
    prompt, continuation = str(record.get("prompt", "")), str(record.get("text", ""))
    return prompt, continuation.removeprefix(prompt)


def _parameters(summary: Record) -> dict[str, Any]:
    """Return parameter counts by component. Training-only components are labelled."""
    counts = section_of(summary, "parameters", "parts")
    return {f"{name} (training only)" if name in _TRAINING_ONLY else name: count for name, count in counts.items()}


def _baselines(summary: Record) -> str:
    found = records_in(summary.get("baselines"))
    if not found:
        return ""
    keys = {"bpb": "BPB", "bpb_with_history": "BPB with history", "bytes": "bytes"}
    if not any(row.get("bpb_with_history") for row in found):
        del keys["bpb_with_history"]
    own = {"compressor": "this model", "bpb": section_of(summary, "bpb_calibrated").get("bpb")}
    rows = [[row.get("compressor"), *(number(row.get(key)) for key in keys)] for row in (own, *found)]
    note = "The same held-out text, compressed."
    if "bpb_with_history" in keys:
        note += " The compressors' history is the training text of the model."
    overlap = summary.get("val_overlap")
    if isinstance(overlap, float):
        note += f" Of the held-out bytes, {overlap_in_words(overlap)}."
    return f"<p class='mute'>{page.text(note)}</p>" + page.table("", ["", *keys.values()], rows, highlight=0)


def _diagnostics(found: Mapping[str, Any]) -> list[str]:
    rows = [(_MEASURES.get(name, name), value) for name, value in page.flat(found) if not isinstance(value, list)]
    steps = records_in(found.get("prediction"))
    heads = sorted({key for record in steps for key in record})
    return [
        page.table("", ["measure", "value"], rows),
        page.table("Prediction by roll-out step", heads, [[record.get(key) for key in heads] for record in steps]),
    ]


def _config(run_dir: Path) -> str:
    source = (run_dir / "config.toml").read_text(encoding="utf-8")
    return f"<p class='mute'>Save this as a .toml file to repeat the run.</p><pre>{escape(source)}</pre>"


def _events(metrics: Metrics) -> str:
    return page.table("", ["step", "event"], [[str(event.get("step")), event.get("what")] for event in metrics.events])
