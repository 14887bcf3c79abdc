"""Losses of rows of raw logits, with Triton kernels on a GPU and plain PyTorch elsewhere.

Legend: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

from jaxtyping import Float, Int
from torch import Tensor

from jepamba.ops.cross_entropy.cpp import is_supported, row_losses_cpp
from jepamba.ops.cross_entropy.pytorch import RowLosses, row_losses_torch, token_nats_torch
from jepamba.ops.dispatch import use_triton


def row_losses(
    raw_nV: Float[Tensor, "n V"],
    bias_V: Float[Tensor, " V"],
    targets_n: Int[Tensor, " n"],
    kind: str,
    cap: float,
    *,
    z_weight: float = 0.0,
    scale: float | None = None,
) -> RowLosses:
    """Return the losses of softcap(raw + bias) and, with a `scale`, the gradients. Overwrites `raw`. No autograd."""
    if use_triton(raw_nV):
        from jepamba.ops.cross_entropy.triton import row_losses_triton

        return row_losses_triton(raw_nV, bias_V, targets_n, kind, cap, z_weight=z_weight, scale=scale)
    if scale is not None and is_supported(raw_nV):
        return row_losses_cpp(raw_nV, bias_V, targets_n, kind, cap, z_weight=z_weight, scale=scale)
    return row_losses_torch(raw_nV, bias_V, targets_n, kind, cap, z_weight=z_weight, scale=scale)


def token_nats(
    logits_nV: Float[Tensor, "n V"], targets_n: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """Return −ln p of each target under softmax(logits / temperature), without changing the logits."""
    if use_triton(logits_nV) and logits_nV.is_contiguous():
        from jepamba.ops.cross_entropy.triton import token_nats_triton

        return token_nats_triton(logits_nV, targets_n, temperature)
    return token_nats_torch(logits_nV, targets_n, temperature)
