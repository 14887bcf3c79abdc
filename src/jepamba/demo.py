"""The demo: a small model on the English text in Python's library, compared with general-purpose compressors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from jepamba.api import load
from jepamba.artifact.locate import SHIPPED
from jepamba.config import Data, with_settings
from jepamba.data.source import Source
from jepamba.errors import UserError
from jepamba.evaluate import compressors
from jepamba.presets import load_preset
from jepamba.progress import Progress
from jepamba.report.html import write_report
from jepamba.train import train
from jepamba.train.export import write_summary

PRESET = "quick"
PROMPT = "The "
SAMPLE_TOKENS = 120


def run_demo(out: Path, seconds: float | None = None) -> dict[str, Any]:
    """Train the `quick` preset into `out`, score the artifact in a fresh process, and compare with compressors.

    Arguments: `seconds`, the training time (default: the preset's).
    Returns: a dictionary with `model` (`bpb` at the calibrated temperature, `bytes` of text scored, `artifact_bytes`),
    `overlap` (see `HeldOut`), `baselines` (rows of `evaluate.compressors` on the same bytes), `sample`,
    `shipped_sample` (of the model in the package) and `out`.
    Raises: `UserError` if training or scoring fails.
    """
    run = with_settings(load_preset(PRESET), {} if seconds is None else {"train.seconds": seconds})
    summary = train(run, out, preset=PRESET)
    splits = _documents(run.data)
    held_out = out / "held-out.txt"
    held_out.write_bytes(b"\0".join(splits["val"]))
    artifact = out / "artifact.jepa"
    with Progress("scoring in a fresh process"):
        score = _run_command(["eval", str(artifact), "--data", str(held_out)])
    sample, shipped_sample = (
        PROMPT + load(model).generate(PROMPT, SAMPLE_TOKENS, temperature=0.8) for model in (artifact, SHIPPED)
    )
    with Progress("compressing the same text") as report:
        # Documents without separators: exactly the bytes that the model is scored on.
        baselines = compressors(b"".join(splits["val"]), b"".join(splits["train"]), report)
    write_summary(out, {**summary, "baselines": baselines})
    write_report(out)
    return {
        "model": {"bpb": score["bpb"], "bytes": score["bytes"], "artifact_bytes": artifact.stat().st_size},
        "overlap": summary["val_overlap"],
        "baselines": baselines,
        "sample": sample,
        "shipped_sample": shipped_sample,
        "out": str(out),
    }


def _documents(data: Data) -> dict[str, list[bytes]]:
    """Return the documents of each split as UTF-8, in the order of training and scoring."""
    splits: dict[str, list[bytes]] = {"train": [], "val": []}
    for split, text in Source((data.train,), data.column, "train", data.holdout).documents():
        splits[split].append(text.encode())
    return splits


def _run_command(words: list[str]) -> dict[str, Any]:
    """Run `jepamba WORDS --json` in a new process and return the parsed output."""
    command = [sys.executable, "-m", "jepamba", *words, "--json"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise UserError(f"`jepamba {' '.join(words)}` failed (exit code {done.returncode})")
    result: dict[str, Any] = json.loads(done.stdout)
    return result
