"""A run that takes a second: a model of some thousand parameters on twelve topics of Python's language reference."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics
from typing import Any

from jepamba.config import Run, from_dict, with_settings
from jepamba.data import corpus
from jepamba.presets import dump_toml
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState

SIZES = {
    "data.seq_len": 32,
    "model.d_model": 32,
    "model.embed_dim": 16,
    "model.n_layer": 2,
    "model.headdim": 16,
    "model.d_state": 8,
    "model.mlp_mult": 1.0,
    "jepa.sigreg_projections": 8,
}
"""Settings that make any preset tiny."""


TOPICS = [body for _, body in sorted(topics.topics.items())]
"""Python's language reference, 460 kB, of which parsing the library's docstrings is no part."""


def text_file(folder: Path) -> Path:
    """The text, NUL-separated, in a new file in `folder`."""
    path = folder / "topics.txt"
    path.write_text("\0".join(TOPICS[:12]))
    return path


def tiny(text: Path, **settings: Any) -> Run:
    """The run, on `text`, with `settings`, whose dots are written as two underscores."""
    run = from_dict(
        {
            "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 32, "cache": str(text.parent / "cache")},
            "model": {
                "embed_dim": 16,
                "d_model": 32,
                "n_layer": 2,
                "headdim": 16,
                "d_state": 8,
                "chunk_size": 16,
                "mlp_mult": 2.0,
            },
            "jepa": {"rollout_steps": 2, "sigreg_projections": 8, "weight": 0.1, "sigreg_weight": 0.05},
            "train": {
                "steps": 8,
                "tokens_per_step": 128,
                "tokens_per_micro": 64,
                "seed": 3,
                "checkpoint_seconds": 0.0,
            },
            "eval": {
                "calibrate_tokens": 512,
                "diagnostics_tokens": 512,
                "sample_tokens": 4,
                "prompts": ["The "],
                "tokens_per_batch": 2048,
            },
        }
    )
    return with_settings(run, {name.replace("__", "."): value for name, value in settings.items()})


def opened(run: Run) -> TrainState:
    """The state of `run` before its first step."""
    text = corpus(run.data)
    return TrainState(resolve(run, text), text, choose_device(run.train))


def preset(folder: Path, run: Run) -> str:
    """The path of a preset file in `folder` that holds `run`."""
    path = folder / "tiny.toml"
    path.write_text(dump_toml(run), encoding="utf-8")
    return str(path)
