"""`jepamba demo`: the whole road on the English inside Python, with figures to read the result against."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jepamba.commands import columns
from jepamba.config import Data
from jepamba.data.source import Source
from jepamba.errors import UserError
from jepamba.evaluate import compressors
from jepamba.presets import load_preset
from jepamba.progress import Progress
from jepamba.study.html import write_report
from jepamba.train import train
from jepamba.train.finish import write_summary

PRESET = "quick"
PROMPT = "The "
SAMPLE_TOKENS = 120


def run_demo(out: Path, seconds: float | None = None) -> dict[str, Any]:
    """Train the `quick` preset into `out`, score its artifact in a fresh process, and compare.

    Arguments: `seconds`, training time instead of the preset's.
    Returns: `model` (BPB at the calibrated temperature, its artifact's bytes, the bytes of text scored), `baselines`
    (rows of `evaluate.compressors` on the same bytes), `sample`, and `out`. Raises `UserError` as training does.
    """
    run = load_preset(PRESET)
    if seconds is not None:
        run = replace(run, train=replace(run.train, seconds=seconds))
    summary = train(run, out, preset=PRESET)
    splits = _documents(run.data)
    held_out = out / "held-out.txt"
    held_out.write_bytes(b"\0".join(splits["val"]))
    artifact = out / "artifact.jepa"
    with Progress("scoring in a fresh process"):
        score = _fresh(["eval", str(artifact), "--data", str(held_out)])
        sample = _fresh(
            ["generate", str(artifact), "--prompt", PROMPT, "--tokens", str(SAMPLE_TOKENS), "--temperature", "0.8"]
        )
    with Progress("compressing the same text") as report:
        # Documents end to end: exactly the bytes that the model is charged for, and no separators.
        baselines = compressors(b"".join(splits["val"]), b"".join(splits["train"]), report)
    write_summary(out, {**summary, "baselines": baselines})
    write_report(out)
    return {
        "model": {"bpb": score["bpb"], "bytes": score["bytes"], "artifact_bytes": artifact.stat().st_size},
        "baselines": baselines,
        "sample": sample["prompt"] + sample["text"],
        "out": str(out),
    }


def demo_table(result: Mapping[str, Any]) -> str:
    """What `run_demo` found, as a page for a terminal."""
    model, baselines = result["model"], result["baselines"]
    rows = [["", "BPB", "BPB, training text as history"]]
    rows += [[f"jepamba, an artifact of {model['artifact_bytes']:,} bytes", f"{model['bpb']:.3f}", ""]]
    rows += [[row["compressor"], f"{row['bpb']:.3f}", f"{row['bpb_with_history']:.3f}"] for row in baselines]
    best = min(baselines, key=lambda row: row["bpb"])
    return (
        f"\nBits per byte (BPB) of {model['bytes']:,} bytes of text that the model has never seen; less is better:\n\n"
        f"{columns(rows)}\n\n"
        f"The model needs {model['bpb']:.2f} bits for each byte, {best['compressor']} alone {best['bpb']:.2f}. "
        "The last column gives the compressors as history what the model was trained on.\n\n"
        f"A sample: {result['sample']}\n\n"
        f"Curves and settings: {Path(result['out']) / 'report.html'}"
    )


def _documents(data: Data) -> dict[str, list[bytes]]:
    """The documents of each split, as UTF-8, in the order in which training and scoring see them."""
    found: dict[str, list[bytes]] = {"train": [], "val": []}
    for split, text in Source(data.train, data.column, "train", data.holdout).documents():
        found[split].append(text.encode())
    return found


def _fresh(words: list[str]) -> dict[str, Any]:
    """What `jepamba WORDS --json` prints, run in a process of its own."""
    command = [sys.executable, "-m", "jepamba", *words, "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"`jepamba {' '.join(words)}` failed in its own process (exit code {done.returncode})")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
