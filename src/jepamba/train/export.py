"""After the last step: calibrate the temperature, write the artifact, score it as loaded from disk, summarize."""

from __future__ import annotations

import json
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from jepamba.artifact import inspect, load_artifact, save_artifact
from jepamba.artifact.heads import HEADS, save_heads
from jepamba.artifact.locate import ARTIFACT
from jepamba.distributed import World
from jepamba.evaluate import (
    Baseline,
    Score,
    calibrate,
    compressors,
    diagnostics,
    score_carried,
    score_plain_at,
    score_sliding,
)
from jepamba.gpu_turn import gpu_turn
from jepamba.io import atomic_write, sha256_of
from jepamba.model import count_by_component
from jepamba.program import program_version
from jepamba.progress import Progress
from jepamba.train.samples import continuations, scored_passage
from jepamba.train.state import TrainState

SUMMARY = "summary.json"
_BASELINE_BYTES = 2_000_000
"""Longest validation text that is compressed for comparison, which takes some seconds per megabyte."""


def export_and_evaluate(state: TrainState, out: Path, preset: str, bpb_initial: float | None) -> dict[str, Any]:
    """Pack the model into `out`, score the packed model, and write summary.json. All ranks must call it.

    The temperature is calibrated on training tokens. Every score is of the artifact as read back from disk. Only the
    latent diagnostics use the model in memory, because they need the training-only heads. Rank 0 does everything but
    the scoring, which all ranks share. `bpb_initial` is the score before training, for summary.json.

    Returns:
        The content of summary.json.
    """
    state.model.eval()
    temperature, artifact_bytes = state.world.on_rank_zero(lambda: pack(state, out / ARTIFACT))
    with gpu_turn():
        scores = score_artifact(state, out / ARTIFACT)
        latents = state.world.on_rank_zero(lambda: _diagnostics(state))
    return state.world.on_rank_zero(
        lambda: _summarize(
            state,
            out,
            preset,
            temperature,
            artifact_bytes,
            {"bpb_initial": bpb_initial, **scores, "diagnostics": latents},
        )
    )


def pack(state: TrainState, path: Path) -> tuple[float, int]:
    """Write the artifact at its calibrated temperature, and with `train.keep_heads` the heads, on rank 0.

    Returns its temperature and its size in bytes.
    """
    run, text = state.run, state.corpus
    with Progress("calibrating the temperature") as report:
        temperature = (
            calibrate(
                state.model,
                text.train,
                run.data.seq_len,
                run.eval.calibrate_tokens,
                reset=run.data.reset,
                tokens_per_batch=run.eval.tokens_per_batch,
                progress=report,
            )
            if run.eval.calibrate_tokens > 0
            else 1.0
        )
    with Progress("packing"):
        if run.quant.budget_bytes > 0 and temperature == 1.0:
            size = path.stat().st_size  # `pack_within_budget` wrote it for this temperature
        else:
            size = save_artifact(path, state.model, run, text.tokenizer, temperature, state.notes)
        if run.train.keep_heads and state.heads is not None:
            save_heads(path.with_name(HEADS), state.heads, run.jepa, sha256_of(path, "the artifact"))
        return temperature, size


def _diagnostics(state: TrainState) -> dict[str, Any]:
    run = state.run
    with Progress("diagnostics") as report:
        return diagnostics(
            state.model,
            state.heads,
            state.corpus.val,
            run.data.seq_len,
            count=run.eval.diagnostics_tokens,
            reset=run.data.reset,
            tokens_per_batch=run.eval.tokens_per_batch,
            progress=report,
        )


def _summarize(
    state: TrainState, out: Path, preset: str, temperature: float, artifact_bytes: int, scores: dict[str, Any]
) -> dict[str, Any]:
    """Write summary.json to `out` and return its content."""
    run, text = state.run, state.corpus
    packed, loaded = inspect(out / ARTIFACT), load_artifact(out / ARTIFACT)
    prompts, tokens = run.eval.prompts, run.eval.sample_tokens
    summary = {
        "preset": preset,
        "steps": state.counters.step,
        "skipped": state.counters.skipped,
        "seconds": state.counters.seconds,
        "tokens": state.counters.tokens,
        "train_tokens": len(text.train),
        **scores,
        "val_overlap": text.overlap,
        "temperature": temperature,
        "artifact_bytes": artifact_bytes,
        "artifact_sha256": sha256_of(out / ARTIFACT, "the artifact"),
        "parameters": {
            "kept": sum(p.numel() for p in state.model.parameters()),
            "training_only": sum(p.numel() for p in state.parameters())
            - sum(p.numel() for p in state.model.parameters()),
            "parts": count_by_component(state.modules.named_parameters()),
        },
        "bit_allocation": state.model.quant.bits_by_name,
        "bytes_by_part": packed["bytes_by_part"],
        "samples": continuations(loaded.model, loaded.tokenizer, run, prompts, tokens, loaded.temperature),
        "passage": scored_passage(loaded, run, text.val),
        "baselines": _baselines(state, scores["bpb_plain"]),
        "environment": {
            "program": program_version(),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": state.device_config.why,
            "threads": torch.get_num_threads(),
            "hardware": f"{state.world.world_size}x {_processor(state.device)}",
        },
    }
    write_summary(out, summary)
    return summary


def _processor(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def write_summary(out: Path, summary: dict[str, Any]) -> None:
    """Write summary.json to `out` atomically."""
    atomic_write(out / SUMMARY, (json.dumps(summary, indent=1) + "\n").encode())


def score_artifact(state: TrainState, artifact: Path) -> dict[str, Any]:
    """Score `artifact` as read back from disk. All ranks must call it.

    Returns: the scores by their keys in summary.json.
    """
    run, val, seq_len = state.run, state.corpus.val, state.run.data.seq_len
    with _on_every_rank(artifact, state.world) as local_path:
        loaded = load_artifact(local_path, device=state.device)
    reset, batch = run.data.reset, run.eval.tokens_per_batch

    def plain() -> list[Score]:
        with Progress(f"scoring at temperatures 1 and {loaded.temperature:.2f}") as report:
            return score_plain_at(
                loaded.model,
                val,
                seq_len,
                (1.0, loaded.temperature),
                reset=reset,
                tokens_per_batch=batch,
                progress=report,
                world=state.world,
            )

    def sliding() -> Score:
        with Progress(f"scoring with sliding windows, stride {run.eval.stride}") as report:
            return score_sliding(
                loaded.model,
                val,
                seq_len,
                stride=run.eval.stride,
                temperature=loaded.temperature,
                reset=reset,
                limit=run.eval.sliding_tokens,
                tokens_per_batch=batch,
                progress=report,
                world=state.world,
            )

    def carried() -> Score:
        with Progress("scoring with the state carried") as report:
            return score_carried(
                loaded.model,
                val,
                seq_len,
                temperature=loaded.temperature,
                reset=reset,
                tokens_per_batch=batch,
                progress=report,
            )

    uncalibrated, calibrated = plain()
    return {
        "bpb_plain": asdict(uncalibrated),
        "bpb_calibrated": asdict(calibrated),
        "bpb_sliding": asdict(sliding()) if run.eval.stride > 0 else None,
        "bpb_carried": asdict(state.world.on_rank_zero(carried)) if run.eval.carry else None,
    }


@contextmanager
def _on_every_rank(path: Path, world: World) -> Iterator[Path]:
    """`path` on rank 0, and a temporary copy of that file on every other rank."""
    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8) if world.is_rank_zero else None
    received = world.broadcast_tensors({} if content is None else {"file": content})["file"]
    if world.is_rank_zero:
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder, path.name)
        copy.write_bytes(received.numpy().tobytes())
        yield copy


def _baselines(state: TrainState, plain: dict[str, Any]) -> list[Baseline] | None:
    """Compress the validation text. None if it is long, or if the artifact was scored on other bytes."""
    if plain["bytes"] > _BASELINE_BYTES:
        return None
    val = state.corpus.val
    text = val.tokenizer.decode(val.read(0, len(val)))
    if len(text) != plain["bytes"] or plain["unrestored_bytes"] != 0:
        return None
    with Progress("compressing the same text") as report:
        return compressors(text, progress=report)
