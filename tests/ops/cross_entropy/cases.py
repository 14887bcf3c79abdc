"""Random inputs for the cross-entropy kernels and their comparison with plain PyTorch in float64."""

from __future__ import annotations

import torch

from jepamba.ops.cross_entropy.pytorch import row_losses_torch
from jepamba.ops.cross_entropy.triton import row_losses_triton
from ops.compare import relative


def cross_entropy_errors(
    rows: int, vocab: int, kind: str, cap: float, dtype: torch.dtype, device: str, *, learn: bool = True, seed: int = 0
) -> dict[str, float]:
    """Errors of all outputs of the cross-entropy kernels, for logits that exceed the cap."""
    g = torch.Generator().manual_seed(seed)
    raw = (torch.randn(rows, vocab, generator=g) * cap).to(dtype)
    bias = torch.randn(vocab, generator=g)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    scale = 0.7 / rows if learn else None
    truth = row_losses_torch(raw.double(), bias.double(), targets, kind, cap, z_weight=1e-2, scale=scale)
    ours = row_losses_triton(raw.to(device), bias.to(device), targets.to(device), kind, cap, z_weight=1e-2, scale=scale)
    assert (ours.grad_nV is None) == (ours.grad_bias_V is None) == (not learn)
    # With few rows and a small vocabulary, the gradient of the bias can cancel.
    terms = (None, None, None, None if truth.grad_nV is None else truth.grad_nV.abs().sum(0))
    return {
        name: relative(a, b, sizes)
        for name, a, b, sizes in zip(("ce", "lse", "raw", "bias"), ours, truth, terms, strict=True)
        if a is not None and b is not None
    }
