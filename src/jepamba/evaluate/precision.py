"""How a text is scored: with the weights as the artifact holds them, and products in the precision of the device."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel


@contextmanager
def scoring(model: LanguageModel) -> Iterator[None]:
    """Put `model` into the state in which texts are scored: `stored`, with `scoring_precision`."""
    with stored(model), scoring_precision(next(model.parameters()).device):
        yield


@contextmanager
def scoring_precision(device: torch.device) -> Iterator[None]:
    """On a GPU, compute fp32 products on the tensor cores in TF32, whose factors have 11 significant bits.

    A score of 1.67 M tokens changed by 0.000002 BPB (docs/evaluation.md). On a CPU products stay fp32. Afterwards they
    are as precise as before.
    """
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if device.type != "cuda" or before == "tf32":
        yield
        return
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        # First the older switch, with which PyTorch requires the newer one to agree.
        matmul.allow_tf32 = False
        matmul.fp32_precision = before
