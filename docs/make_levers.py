"""Write docs/results/levers.csv, a line for each run behind the lab book, from the runs.jsonl of the lab notes.

Run it after a note gets new runs: `.venv/bin/python docs/make_levers.py`. A test compares the file with the notes.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
FILES = (
    "levers-16s/runs.jsonl",
    "levers-30s/runs.jsonl",
    "levers-bits/runs.jsonl",
    "levers-state/runs.jsonl",
    "best-540s/vocabulary-runs.jsonl",
    "levers-1200-steps/runs.jsonl",
    "weight-decay/runs.jsonl",
    "levers-cpu/runs.jsonl",
    "regularisation-cpu/runs.jsonl",
)
COLUMNS = (
    "note",
    "device",
    "run",
    "seed",
    "steps",
    "tokens",
    "training_seconds",
    "parameters",
    "bytes",
    "bytes_of",
    "bpb_plain",
    "bpb_carried",
)


def line(note: str, run: dict[str, Any]) -> dict[str, Any]:
    """A line of the table for a run of `note`. An empty field was not recorded.

    `bytes_of` is the packed artifact or, where none was packed, the entropy of its values.
    """
    name = run.get("name") or run.get("lever") or f"decay {run['muon_weight_decay']}"
    name += "".join(f", {extra} {run[extra]}" for extra in ("dropout", "replaced_tokens") if run.get(extra))
    if note == "weight-decay":
        name += f", {run['text_tokens']:,} tokens of text"
    packed = run.get("artifact_bytes") or run.get("packed")
    estimated = round(run["entropy_mb"] * 1e6) if "entropy_mb" in run else ""
    seconds = run.get("train_s") or run.get("train_seconds") or run.get("seconds") or run.get("cpu") or ""
    device = run.get("device") or ("one CPU core" if note.endswith("-cpu") else "NVIDIA H200")
    return {
        "note": note,
        "device": "NVIDIA H200" if device == "one H200" else device,
        "run": name,
        "seed": run["seed"],
        "steps": run["steps"],
        "tokens": run.get("tokens", ""),
        "training_seconds": f"{seconds:.1f}" if seconds else "",
        "parameters": run.get("parameters", ""),
        "bytes": packed or estimated,
        "bytes_of": "artifact" if packed else "entropy" if estimated else "",
        "bpb_plain": round(run.get("bpb_plain") or run["plain"], 5),
        "bpb_carried": round(run.get("bpb_carried") or run["carried"], 5),
    }


def table() -> str:
    """Return the content of levers.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for file in FILES:
        for text in (RESULTS / file).read_text(encoding="utf-8").splitlines():
            writer.writerow(line(file.partition("/")[0], json.loads(text)))
    return out.getvalue()


if __name__ == "__main__":
    RESULTS.joinpath("levers.csv").write_text(table(), encoding="utf-8")
