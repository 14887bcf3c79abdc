"""Random inputs for the fused operators and their comparison with plain PyTorch in float64, for CPU and GPU tests.

Every function returns the relative RMS error of each output and gradient by its name.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.fused.cross_entropy import row_losses_torch, row_losses_triton, softcap


def relative(ours: Tensor, truth: Tensor) -> float:
    """‖ours − truth‖ / ‖truth‖; the norm itself where the truth is 0."""
    assert ours.shape == truth.shape
    size = truth.double().norm()
    return ((ours.double().cpu() - truth.double().cpu()).norm() / (size if size > 0 else 1.0)).item()


def cross_entropy_errors(
    rows: int, vocab: int, kind: str, cap: float, dtype: torch.dtype, device: str, *, learn: bool = True, seed: int = 0
) -> dict[str, float]:
    """Of every output of the cross-entropy kernels; logits wide enough that the cap binds."""
    g = torch.Generator().manual_seed(seed)
    raw = (torch.randn(rows, vocab, generator=g) * cap).to(dtype)
    bias = torch.randn(vocab, generator=g)
    targets = torch.randint(0, vocab, (rows,), generator=g)
    scale = 0.7 / rows if learn else None
    truth = row_losses_torch(raw.double(), bias.double(), targets, kind, cap, z_weight=1e-2, scale=scale)
    ours = row_losses_triton(raw.to(device), bias.to(device), targets.to(device), kind, cap, z_weight=1e-2, scale=scale)
    assert (ours.grad_nV is None) == (ours.grad_bias_V is None) == (not learn)
    names = ("ce", "lse", "raw", "bias")
    return {n: relative(a, b) for n, a, b in zip(names, ours, truth, strict=True) if a is not None and b is not None}


def autograd_truth(raw: Tensor, bias: Tensor, targets: Tensor, kind: str, cap: float) -> list[Tensor]:
    """The gradients of ce + 0.01·lse², summed and times 0.7, by autograd."""
    leaves = [raw.clone().requires_grad_(), bias.clone().requires_grad_()]
    logits = softcap(leaves[0] + leaves[1], kind, cap)
    loss = F.cross_entropy(logits, targets, reduction="sum") + 1e-2 * logits.logsumexp(1).square().sum()
    return list(torch.autograd.grad(0.7 * loss, leaves))
