"""Training that starts from a trained model (`train.init_from`): its tokenizer and its weights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from jepamba.artifact.heads import HEAD_SETTINGS, HEADS, load_heads
from jepamba.artifact.locate import SHIPPED, locate
from jepamba.artifact.store import load_artifact, open_artifact
from jepamba.config import Run
from jepamba.data import Corpus, corpus
from jepamba.errors import UserError
from jepamba.hub_names import HUB
from jepamba.io import sha256_of
from jepamba.progress import Report

if TYPE_CHECKING:
    from jepamba.train.state import TrainState


def run_corpus(run: Run, progress: Report | None = None) -> Corpus:
    """Return the tokens of `run`, by the tokenizer of the model that it starts from, if any; see `corpus`."""
    start = run.train.init_from
    return corpus(run.data, progress, open_artifact(locate(start)).tokenizer if start else None)


def origins(run: Run) -> dict[str, Any]:
    """Return the notes of an artifact of `run` about the trained models before it, the nearest first.

    A local name stays out of it: it is private, and another one on resume.
    """
    start = run.train.init_from
    if not start:
        return {}
    path = locate(start)
    notes, sha256 = open_artifact(path).manifest.extra, sha256_of(path, "the artifact")
    shipped = "the small model in the package jepamba" if sha256 == sha256_of(SHIPPED, "the artifact") else ""
    here = {"name": start if start.startswith(HUB) else shipped, "sha256": sha256, "text": notes.get("text", "")}
    before = notes.get("initial", [])
    return {"initial": [here, *(before if isinstance(before, list) else [])]}


def initialize(state: TrainState) -> list[str]:
    """Give the model of `state` the weights that `train.init_from` names, and the heads their own if they were kept.

    Returns: what was loaded, for the log; empty without `train.init_from`. Raises `UserError` if they do not fit.
    """
    if not state.run.train.init_from:
        return []
    loaded = _load(state)
    if state.target_encoder is not None and state.heads is not None:
        state.target_encoder.update(state.model, state.heads, 0.0)
    return [loaded]


def _load(state: TrainState) -> str:
    """Load the weights. Returns what was loaded."""
    path = locate(state.run.train.init_from)
    stored = {name: weight.master for name, weight in load_artifact(path).model.quant_weights().items()}
    weights = state.model.quant_weights()
    wrong = [n for n in stored.keys() | weights.keys() if _shape(stored.get(n)) != _shape(weights.get(n))]
    if wrong:
        raise UserError(f"{path}: train.init_from: {min(wrong)} differs in shape; leave model.* as in that artifact")
    sha256 = sha256_of(path, "the artifact")
    with torch.no_grad():
        for name, weight in weights.items():
            weight.master.copy_(stored[name])
        beside = path.with_name(HEADS)
        if state.heads is None or not beside.exists():
            return f"initial weights: {path} (sha256 {sha256[:16]}); JEPA heads: random"
        heads = load_heads(beside, state.run.model.d_model, sha256)
        for setting in HEAD_SETTINGS:
            kept, wanted = (getattr(jepa, setting) for jepa in (heads.config, state.run.jepa))
            if kept != wanted:
                raise UserError(
                    f"{beside}: train.init_from: its heads were trained with jepa.{setting} = {kept}, this run has "
                    f"{wanted}; set it as in their run"
                )
        state.heads.load_state_dict(heads.state_dict())
    return f"initial weights and JEPA heads: {path.parent} (sha256 {sha256[:16]})"


def _shape(weight: object) -> torch.Size | None:
    return getattr(getattr(weight, "master", weight), "shape", None)
