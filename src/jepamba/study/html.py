"""A run's report.html, made from what the run left in its folder: metrics.jsonl, summary.json and config.toml.

It can be written at any time: a run in progress shows the curves that it has so far.
"""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from jepamba.io import atomic_write
from jepamba.progress import duration
from jepamba.study import page
from jepamba.study.charts import Line, line_chart
from jepamba.study.records import (
    Metrics,
    Record,
    number,
    read_config,
    read_metrics,
    read_summary,
    series,
    with_train_bpb,
)

_TRAINING_ONLY = {"projector", "predictor", "predictor projection"}
_TERMS = {
    "loss": "Whole loss",
    "ce": "Cross-entropy (nats a token)",
    "z_loss": "z-loss (before its weight)",
    "jepa": "Latent prediction (MSE)",
    "sigreg": "SIGReg",
}


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html, one self-contained file, and return its path.

    Whatever is missing, cut short or not a number is left out of it; nothing that the files hold can become markup.
    """
    metrics = read_metrics(run_dir / "metrics.jsonl")
    summary = read_summary(run_dir)
    text = page.page(f"{_title(run_dir, summary)}: jepamba", _body(run_dir, metrics, summary))
    path = run_dir / "report.html"
    atomic_write(path, text.encode("utf-8", errors="replace"))
    return path


def _body(run_dir: Path, metrics: Metrics, summary: Record | None) -> list[str]:
    found = summary or {}
    return [
        f"<h1>{page.text(_title(run_dir, summary))}</h1>",
        f"<p>{page.text(_state(metrics, summary))}</p>",
        page.tiles(_figures(metrics, found)),
        page.section("Next to general-purpose compressors", _baselines(found)),
        page.section("Curves", page.charts(_charts(metrics))),
        page.section("Samples", *map(_sample, _list(found.get("samples")))),
        page.section(
            "What the budget is spent on",
            page.shares("Parameters of the model and of what only training needs", "parameters", _parts(found)),
            page.shares(
                "Bytes of the artifact as packed, before its entropy coder", "bytes", _mapping(found, "bytes_by_part")
            ),
        ),
        page.section("Diagnostics", page.table("", ["what", "value"], page.flat(_mapping(found, "diagnostics")))),
        page.section("Settings", _config(run_dir)),
        page.section("Environment", page.table("", ["what", "value"], page.flat(_mapping(found, "environment")))),
        page.section("Events", _events(metrics)),
    ]


def _title(run_dir: Path, summary: Record | None) -> str:
    preset = Path(str((summary or {}).get("preset") or run_dir.resolve().name)).name
    return preset.removesuffix(".toml")


def _state(metrics: Metrics, summary: Record | None) -> str:
    last = metrics.steps[-1] if metrics.steps else {}
    seconds = number(last.get("seconds"))
    spent = f" and {duration(seconds)} of training" if seconds is not None else ""
    broken = f" {metrics.broken} lines of metrics.jsonl are incomplete and left out." if metrics.broken else ""
    if summary is not None:
        return "This run is finished. All bits per byte (BPB) below are of text that it was never trained on." + broken
    return f"This run has no summary yet; it has come to step {last.get('step', 0)}{spent}.{broken}"


def _figures(metrics: Metrics, found: Record) -> list[tuple[str, str]]:
    bpb = {
        "BPB at the calibrated temperature": _mapping(found, "bpb_calibrated").get("bpb"),
        "BPB, plain windows": _mapping(found, "bpb_plain").get("bpb"),
        "BPB, sliding windows": _mapping(found, "bpb_sliding").get("bpb"),
    }
    plain = _mapping(found, "bpb_plain")
    if plain.get("bpb_decoded") != plain.get("bpb"):
        bpb["BPB, plain windows, by decoded bytes"] = plain.get("bpb_decoded")
    if not found and metrics.vals:
        bpb = {"BPB at the last validation": metrics.vals[-1].get("bpb")}
    counts = {
        "bytes of the artifact": found.get("artifact_bytes"),
        "parameters kept": _mapping(found, "parameters").get("kept"),
        "training-only parameters": _mapping(found, "parameters").get("training_only"),
        "steps": found.get("steps"),
        "tokens seen": found.get("tokens"),
    }
    rows = [(label, f"{value:.4f}") for label, raw in bpb.items() if (value := number(raw)) is not None]
    if (seconds := number(found.get("seconds"))) is not None:
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
    drawn = [_bpb_chart(metrics)] if series(steps, "step", "ce") or metrics.vals else []
    drawn += [line_chart(line.label, "step", "", [line]) for line in terms if any(y != 0 for _, y in line.points)]
    for title, unit, lines, log in (
        ("Gradient norm of each term", "norm", norms, True),
        ("Gradient norm before clipping", "norm", [Line("all", series(steps, "step", "grad_norm"))], True),
        ("Learning rates", "learning rate", rates, False),
        ("λ, the weight of SIGReg", "λ", [Line("λ", series(steps, "step", "lambda"))], False),
        ("Throughput", "tokens a second", [Line("all", series(steps, "step", "tokens_per_s"))], False),
        ("Memory", "MB", [Line("all", series(steps, "step", "memory_mb"))], False),
    ):
        shown = [line for line in lines if any(y != 0 for _, y in line.points)]
        if shown:
            drawn.append(line_chart(title, "step", unit, shown, log_y=log))
    return drawn


def _bpb_chart(metrics: Metrics) -> str:
    train = series(with_train_bpb(metrics.steps), "step", "train_bpb")
    return line_chart(
        "Bits per byte",
        "step",
        "BPB",
        [Line("training", train), Line("held-out text", series(metrics.vals, "step", "bpb"))],
    )


def _parts(found: Record) -> dict[str, Any]:
    """Parameters by part, the training-only ones marked."""
    counts = _mapping(found, "parameters", "parts")
    return {f"{name} (training only)" if name in _TRAINING_ONLY else name: count for name, count in counts.items()}


def _baselines(found: Record) -> str:
    rows = [
        [row.get("compressor"), *(number(row.get(key)) for key in ("bpb", "bpb_with_history", "bytes"))]
        for row in _list(found.get("baselines"))
        if isinstance(row, Mapping)
    ]
    if not rows:
        return ""
    ours = ["this model", number(_mapping(found, "bpb_calibrated").get("bpb")), None, None]
    caption = "Bits per byte of the same held-out text; the model was trained on what the compressors have as history."
    return page.table(caption, ["", "BPB", "BPB, training text as history", "bytes"], [ours, *rows], ours=0)


def _sample(sample: Any) -> str:
    if not isinstance(sample, Mapping):
        return ""
    prompt, said = escape(str(sample.get("prompt", ""))), escape(str(sample.get("text", "")))
    continued = said.removeprefix(prompt)
    return f'<figure class="sample"><blockquote><strong>{prompt}</strong>{continued}</blockquote></figure>'


def _config(run_dir: Path) -> str:
    config = read_config(run_dir)
    if config is None:
        return ""
    source = (run_dir / "config.toml").read_text(encoding="utf-8")
    return "<p class='mute'>Save this as a .toml file to repeat the run.</p>" + page.preformatted(source)


def _events(metrics: Metrics) -> str:
    return page.table("", ["step", "what"], [[str(event.get("step")), event.get("what")] for event in metrics.events])


def _mapping(found: Record, *keys: str) -> Mapping[str, Any]:
    value: Any = found
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
