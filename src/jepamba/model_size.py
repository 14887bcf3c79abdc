"""Computes the size of a run's model without data: parameters per component, and the bytes of its artifact."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from jepamba.artifact import estimate_bytes
from jepamba.config import Run
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel, count_by_component
from jepamba.text.tokenizers import read_tokenizer

BYTES_PER_PIECE = 18
"""Estimate for an untrained SentencePiece model. The published model of 8192 pieces has 45, with normalizer tables."""


@dataclass(frozen=True)
class ModelSize:
    """The size of a run's model."""

    counts: dict[str, int]
    """Number of parameters `kept` in the artifact and `training_only`."""
    parts: dict[str, int]
    """Number of parameters per component, training-only components last."""
    artifact_bytes: int
    """Bytes of all values at the bits of their quantizers, before entropy coding, and of the tokenizer."""


def model_size(run: Run) -> ModelSize:
    """Build the model of `run` temporarily and return its size.

    A tokenizer that is not trained yet counts with its maximum number of pieces; a small text gives fewer. Raises
    `UserError` for a tokenizer file that cannot be read.
    """
    vocab, tokenizer_bytes = run.model.vocab_size, 0
    if run.data.tokenizer == "bytes":
        vocab = 256
    elif run.data.tokenizer == "bpe":
        vocab = vocab or run.data.vocab
        tokenizer_bytes = BYTES_PER_PIECE * vocab
    elif Path(run.data.tokenizer).exists() or not vocab:
        tokenizer = read_tokenizer(run.data.tokenizer)
        vocab, tokenizer_bytes = vocab or tokenizer.vocab_size, len(tokenizer.serialize())
    with torch.device("meta"):  # shapes without values
        model = LanguageModel(replace(run.model, vocab_size=vocab), run.quant)
        heads = JepaHeads(run.jepa, run.model.d_model) if run.jepa.active else None
    kept = sum(value.numel() for value in model.parameters())
    training_only = sum(value.numel() for value in heads.parameters()) if heads is not None else 0
    named = [*model.named_parameters(), *(heads.named_parameters() if heads is not None else [])]
    return ModelSize(
        {"kept": kept, "training_only": training_only},
        count_by_component(named),
        estimate_bytes(model, tokenizer_bytes),
    )
