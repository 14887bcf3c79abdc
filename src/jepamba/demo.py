"""A small model trained, packed and scored on the English inside Python, compared with compressors of the same text."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jepamba.config import Data, with_settings
from jepamba.data.source import Source
from jepamba.errors import UserError
from jepamba.evaluate import compressors
from jepamba.presets import load_preset
from jepamba.progress import Progress
from jepamba.study.html import write_report
from jepamba.train import train
from jepamba.train.export import write_summary

PRESET = "quick"
PROMPT = "The "
SAMPLE_TOKENS = 120


def run_demo(out: Path, seconds: float | None = None) -> dict[str, Any]:
    """Train the `quick` preset into `out`, score its artifact in a fresh process, and compare.

    Arguments: `seconds`, training time instead of the preset's.
    Returns: `model` (BPB at the calibrated temperature, its artifact's bytes, the bytes of text scored), `baselines`
    (rows of `evaluate.compressors` on the same bytes), `sample`, and `out`. Raises `UserError` as training does.
    """
    run = with_settings(load_preset(PRESET), {} if seconds is None else {"train.seconds": seconds})
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
