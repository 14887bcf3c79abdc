"""How large a run's model is, before any data is read: parameters by part, and the bytes of its artifact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jepamba.artifact import estimate_bytes
from jepamba.config import Run
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel, count_by_component
from jepamba.text.tokenizers import read_tokenizer

BYTES_A_PIECE = 18
"""Of a SentencePiece model not yet trained; the published one of 8192 pieces takes 45 with its normalizer's tables."""


@dataclass(frozen=True)
class ModelSize:
    """What a run's model comes to."""

    counts: dict[str, int]
    """Parameters `kept` in the artifact and `training_only`."""
    parts: dict[str, int]
    """Parameters by part, the training-only ones last."""
    artifact_bytes: int
    """Every value packed to its bits, before entropy coding, and the tokenizer."""


def model_size(run: Run) -> ModelSize:
    """The sizes of `run`, whose model is built and thrown away.

    A tokenizer that is yet to be trained is taken to get all the pieces it may have; very little text gives fewer.
    Raises `UserError` for a tokenizer file that cannot be read.
    """
    vocab, tokenizer_bytes = run.model.vocab_size, 0
    if run.data.tokenizer == "bytes":
        vocab = 256
    elif run.data.tokenizer == "bpe":
        vocab = vocab or run.data.vocab
        tokenizer_bytes = BYTES_A_PIECE * vocab
    elif Path(run.data.tokenizer).exists() or not vocab:
        tokenizer = read_tokenizer(run.data.tokenizer)
        vocab, tokenizer_bytes = vocab or tokenizer.vocab_size, len(tokenizer.serialize())
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(replace(run.model, vocab_size=vocab), run.quant)
        heads = JepaHeads(run.jepa, run.model.d_model) if run.jepa.active else None
    kept = sum(value.numel() for value in model.parameters())
    only = sum(value.numel() for value in heads.parameters()) if heads is not None else 0
    named = [*model.named_parameters(), *(heads.named_parameters() if heads is not None else [])]
    return ModelSize(
        {"kept": kept, "training_only": only}, count_by_component(named), estimate_bytes(model, tokenizer_bytes)
    )
