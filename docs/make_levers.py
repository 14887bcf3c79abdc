"""Write docs/results/levers.csv: a line for each run in the files *runs.jsonl of the lab notes.

Run it after a note gets new runs: `.venv/bin/python docs/make_levers.py`. A test compares the file with the notes.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
WHOLE, QUARTER, START = "validation text", "its first 409,600 targets", "its first 150,000 targets"
NOTES = {
    "levers-16s": QUARTER,
    "levers-30s": QUARTER,
    "levers-bits": QUARTER,
    "levers-state": QUARTER,
    "best-540s": WHOLE,
    "levers-1200-steps": WHOLE,
    "seed-noise": WHOLE,
    "weight-decay": WHOLE,
    "levers-cpu": START,
    "regularisation-cpu": START,
}
"""The notes, and the text that their scores are of unless a run says `scored`. BPB is by original bytes."""
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
    "scored",
    "bpb_plain",
    "bpb_carried",
)


def line(note: str, run: dict[str, Any]) -> dict[str, Any]:
    """A line of the table for a run of `note`. An empty field was not recorded.

    `bytes_of` says what `bytes` counts: the packed artifact, or an estimate by the entropy of its values.
    """
    name = run.get("name") or run.get("lever") or f"decay {run['muon_weight_decay']}"
    extras = ("adam_weight_decay", "extra_embedding_decay", "dropout", "replaced_tokens")
    name += "".join(f", {extra} {run[extra]}" for extra in extras if run.get(extra))
    if note == "weight-decay":
        name += f", {run['text_tokens']:,} tokens of text"
    packed = run.get("artifact_bytes") or run.get("packed")
    estimated = round(run["entropy_mb"] * 1e6) if "entropy_mb" in run else ""
    seconds = run.get("train_s") or run.get("train_seconds") or run.get("seconds") or run.get("cpu") or ""
    plain, carried = (run.get(f"bpb_{mode}") or run.get(mode) for mode in ("plain", "carried"))
    return {
        "note": note,
        "device": run.get("device") or ("one CPU core" if note.endswith("-cpu") else "NVIDIA H200"),
        "run": name,
        "seed": run["seed"],
        "steps": run["steps"],
        "tokens": run.get("tokens", ""),
        "training_seconds": f"{seconds:.1f}" if seconds else "",
        "parameters": run.get("parameters", ""),
        "bytes": packed or estimated,
        "bytes_of": "artifact" if packed else "entropy" if estimated else "",
        "scored": run.get("scored", NOTES[note]),
        "bpb_plain": round(plain, 5) if plain else "",
        "bpb_carried": round(carried, 5) if carried else "",
    }


def table() -> str:
    """Return the content of levers.csv."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for note in NOTES:
        for file in sorted((RESULTS / note).glob("*runs.jsonl")):
            for text in file.read_text(encoding="utf-8").splitlines():
                writer.writerow(line(note, json.loads(text)))
    return out.getvalue()


if __name__ == "__main__":
    RESULTS.joinpath("levers.csv").write_text(table(), encoding="utf-8")
