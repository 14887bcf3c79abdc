"""The run that the GPU tests train: small, and with everything in it."""

from pathlib import Path
from typing import Any

from jepamba.config import Run, with_settings
from jepamba.presets import load_preset


def small_run(cache: Path, changes: dict[str, Any] | None = None) -> Run:
    """`submission-bpe` of a few layers on the English inside Python, two micro-batches a step, with `changes`."""
    settings = {
        "data.tokenizer": "bytes",
        "data.reset": True,
        "data.cache": str(cache),
        "data.seq_len": 256,
        "model.vocab_size": 0,
        "model.d_model": 128,
        "model.embed_dim": 96,
        "model.n_layer": 4,
        "jepa.sigreg_projections": 64,
        "train.tokens_per_micro": 2048,
        "train.tokens_per_step": 4096,
    }
    return with_settings(load_preset("submission-bpe"), {**settings, **(changes or {})})
