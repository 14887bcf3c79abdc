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
from jepamba.report.charts import Line, line_chart
from jepamba.report.records import (
    Metrics,
    Record,
    number,
    read_config,
    read_metrics,
    read_summary,
    series,
    with_train_bpb,
)
from jepamba.text.near_duplicates import overlap_in_words
from jepamba.text.unrestored import bpb_unit

_TRAINING_ONLY = {"projector", "predictor", "predictor projection"}
_TERMS = {
    "loss": "Total loss",
    "ce": "Cross-entropy (nats per token)",
    "z_loss": "z-loss (unweighted)",
    "jepa": "Latent prediction (MSE)",
    "sigreg": "SIGReg",
}


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html, one self-contained file, and return its path.

    The report omits missing, truncated and non-numeric values, and escapes all text from the files.
    """
    metrics = read_metrics(run_dir / "metrics.jsonl")
    summary = read_summary(run_dir)
    text = page.page(f"{_title(run_dir, summary)}: jepamba", _body(run_dir, metrics, summary))
    path = run_dir / "report.html"
    atomic_write(path, text.encode("utf-8", errors="replace"))
    return path


def _body(run_dir: Path, metrics: Metrics, summary: Record | None) -> list[str]:
    results = summary or {}
    return [
        f"<h1>{page.text(_title(run_dir, summary))}</h1>",
        f"<p>{page.text(_state(metrics, summary))}</p>",
        page.tiles(_key_values(metrics, results)),
        page.section("Comparison with general-purpose compressors", _baselines(results)),
        page.section("Curves", page.charts(_charts(metrics))),
        page.section("Samples", *map(_sample, _list(results.get("samples")))),
        page.section(
            "Parameters and bytes by component",
            page.shares("Parameters", "parameters", _parameters(results)),
            page.shares(
                "Bytes of the packed artifact, before entropy coding", "bytes", _mapping(results, "bytes_by_part")
            ),
        ),
        page.section("Diagnostics", page.table("", ["name", "value"], page.flat(_mapping(results, "diagnostics")))),
        page.section("Settings", _config(run_dir)),
        page.section("Environment", page.table("", ["name", "value"], page.flat(_mapping(results, "environment")))),
        page.section("Events", _events(metrics)),
    ]


def _title(run_dir: Path, summary: Record | None) -> str:
    preset = Path(str((summary or {}).get("preset") or run_dir.resolve().name)).name
    return preset.removesuffix(".toml")


def _state(metrics: Metrics, summary: Record | None) -> str:
    last = metrics.steps[-1] if metrics.steps else {}
    seconds = number(last.get("seconds"))
    elapsed = f" after {duration(seconds)} of training" if seconds is not None else ""
    broken = f" {metrics.broken} lines of metrics.jsonl are incomplete and were skipped." if metrics.broken else ""
    if summary is not None:
        return "This run is finished. All bits per byte (BPB) below are measured on held-out text." + broken
    return f"This run has no summary yet. It is at step {last.get('step', 0)}{elapsed}.{broken}"


def _key_values(metrics: Metrics, summary: Record) -> list[tuple[str, str]]:
    plain = _mapping(summary, "bpb_plain")
    unit = bpb_unit(plain.get("counted"))
    bpb = {
        f"{unit} at the calibrated temperature": _mapping(summary, "bpb_calibrated").get("bpb"),
        f"{unit}, plain windows": plain.get("bpb"),
        f"{unit}, sliding windows": _mapping(summary, "bpb_sliding").get("bpb"),
        f"{unit}, state carried": _mapping(summary, "bpb_carried").get("bpb"),
    }
    if plain.get("bpb_decoded") != plain.get("bpb"):
        bpb["BPB, plain windows, by decoded bytes"] = plain.get("bpb_decoded")
    if not summary and metrics.vals:
        bpb = {f"{bpb_unit(metrics.vals[-1].get('counted'))} at the last validation": metrics.vals[-1].get("bpb")}
    counts = {
        "artifact bytes": summary.get("artifact_bytes"),
        "parameters in the artifact": _mapping(summary, "parameters").get("kept"),
        "training-only parameters": _mapping(summary, "parameters").get("training_only"),
        "steps": summary.get("steps"),
        "tokens seen": summary.get("tokens"),
    }
    rows = [(label, f"{value:.4f}") for label, raw in bpb.items() if (value := number(raw)) is not None]
    if (seconds := number(summary.get("seconds"))) is not None:
        rows.append(("training time", duration(seconds)))
    return rows + [(label, f"{value:,.0f}") for label, raw in counts.items() if (value := number(raw)) is not None]


def _charts(metrics: Metrics) -> list[str]:
    steps = metrics.steps
    terms = [Line(label, series(steps, "step", key)) for key, label in _TERMS.items()]
    norms = [
        Line(label, series(metrics.terms, "step", key))
        for key, label in (
            ("grad_ce", "cross-entropy"),
            ("grad_jepa", "latent prediction"),
            ("grad_sigreg", "SIGReg"),
        )
    ]
    rates = [Line(label, series(steps, "step", key)) for key, label in (("muon_lr", "Muon"), ("adam_lr", "AdamW"))]
    charts = [_bpb_chart(metrics)] if series(steps, "step", "ce") or metrics.vals else []
    charts += [line_chart(line.label, "step", "", [line]) for line in terms if any(y != 0 for _, y in line.points)]
    for title, unit, lines, log in (
        ("Gradient norm of each term", "norm", norms, True),
        ("Gradient norm before clipping", "norm", [Line("all", series(steps, "step", "grad_norm"))], True),
        ("Learning rates", "learning rate", rates, False),
        ("λ, the weight of SIGReg", "λ", [Line("λ", series(steps, "step", "lambda"))], False),
        ("Throughput", "tokens per second", [Line("all", series(steps, "step", "tokens_per_s"))], False),
        ("Memory", "MB", [Line("all", series(steps, "step", "memory_mb"))], False),
    ):
        shown = [line for line in lines if any(y != 0 for _, y in line.points)]
        if shown:
            charts.append(line_chart(title, "step", unit, shown, log_y=log))
    return charts


def _bpb_chart(metrics: Metrics) -> str:
    train = series(with_train_bpb(metrics.steps), "step", "train_bpb")
    return line_chart(
        "Bits per byte",
        "step",
        "BPB",
        [Line("training", train), Line("held-out text", series(metrics.vals, "step", "bpb"))],
    )


def _parameters(summary: Record) -> dict[str, Any]:
    """Return parameter counts by component. Training-only components are labelled."""
    counts = _mapping(summary, "parameters", "parts")
    return {f"{name} (training only)" if name in _TRAINING_ONLY else name: count for name, count in counts.items()}


def _baselines(summary: Record) -> str:
    rows = [
        [row.get("compressor"), *(number(row.get(key)) for key in ("bpb", "bpb_with_history", "bytes"))]
        for row in _list(summary.get("baselines"))
        if isinstance(row, Mapping)
    ]
    if not rows:
        return ""
    own_row = ["this model", number(_mapping(summary, "bpb_calibrated").get("bpb")), None, None]
    caption = "Bits per byte of the same held-out text. The compressors' history is the training text of the model."
    overlap = summary.get("val_overlap")
    if isinstance(overlap, float):
        caption += f" Of the held-out bytes, {overlap_in_words(overlap)}."
    return page.table(caption, ["", "BPB", "BPB, training text as history", "bytes"], [own_row, *rows], highlight=0)


def _sample(sample: Any) -> str:
    if not isinstance(sample, Mapping):
        return ""
    prompt, text = escape(str(sample.get("prompt", ""))), escape(str(sample.get("text", "")))
    continuation = text.removeprefix(prompt)
    return f'<figure class="sample"><blockquote><strong>{prompt}</strong>{continuation}</blockquote></figure>'


def _config(run_dir: Path) -> str:
    config = read_config(run_dir)
    if config is None:
        return ""
    source = (run_dir / "config.toml").read_text(encoding="utf-8")
    return "<p class='mute'>Save this as a .toml file to repeat the run.</p>" + page.preformatted(source)


def _events(metrics: Metrics) -> str:
    return page.table("", ["step", "event"], [[str(event.get("step")), event.get("what")] for event in metrics.events])


def _mapping(record: Record, *keys: str) -> Mapping[str, Any]:
    value: Any = record
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
