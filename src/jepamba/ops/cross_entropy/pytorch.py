"""Losses of rows of raw logits, and their gradients, in plain PyTorch.

Legend: n rows (tokens), V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor


class RowLosses(NamedTuple):
    """Losses of each row, and the gradients of Σ (ce + z_weight·lse²)·scale if a scale was given."""

    ce_n: Float32[Tensor, " n"]
    """Cross-entropy in nats."""
    lse_n: Float32[Tensor, " n"]
    """Logsumexp of the capped logits."""
    grad_nV: Float[Tensor, "n V"] | None
    """Gradient of the raw logits, in their dtype."""
    grad_bias_V: Float32[Tensor, " V"] | None


def softcap(logits: Tensor, kind: str, cap: float) -> Tensor:
    """Limit `logits` to ±cap.

    Arguments: `kind`: "tanh" for cap·tanh(logits/cap); "poly" for its polynomial approximation
    cap·clamp(u·(1 − u²/3 + u⁴/15), ±1) with u = clamp(logits/cap, ±2); "off" for no limit.
    """
    if kind == "off":
        return logits
    if kind == "tanh":
        return cap * torch.tanh(logits / cap)
    u = (logits / cap).clamp(-2.0, 2.0)
    square = u * u
    return cap * (u * (1.0 - square / 3.0 + square * square / 15.0)).clamp(-1.0, 1.0)


def row_losses_torch(
    raw_nV: Tensor,
    bias_V: Tensor,
    targets_n: Tensor,
    kind: str,
    cap: float,
    *,
    z_weight: float = 0.0,
    scale: float | None = None,
) -> RowLosses:
    """`row_losses` in plain PyTorch. Tensors over the vocabulary are fp32, or fp64 if `raw` is fp64."""
    wide = torch.promote_types(raw_nV.dtype, torch.float32)
    targets_n1 = targets_n.unsqueeze(1)
    logits_nV, slope_nV = _cap_in_place(raw_nV.to(wide).add_(bias_V), kind, cap)
    lse_n1 = logits_nV.logsumexp(1, keepdim=True)
    ce_n = (lse_n1 - logits_nV.gather(1, targets_n1)).squeeze(1)
    if scale is None:
        return RowLosses(ce_n, lse_n1.squeeze(1), None, None)
    # d ce = softmax − onehot;  d lse² = 2·lse·softmax.
    grad_nV = logits_nV.sub_(lse_n1).exp_().mul_((1.0 + 2.0 * z_weight * lse_n1) * scale)
    grad_nV.scatter_add_(1, targets_n1, torch.full_like(lse_n1, -scale))
    if slope_nV is not None:
        grad_nV.mul_(slope_nV)
    return RowLosses(ce_n, lse_n1.squeeze(1), grad_nV.to(raw_nV.dtype), grad_nV.sum(0))


def _cap_in_place(raw: Tensor, kind: str, cap: float) -> tuple[Tensor, Tensor | None]:
    """Return (softcap(raw), its slope or None if the slope is 1 everywhere), and overwrite `raw`.

    In-place operations matter because these passes are most of the time of a small model besides matrix products. The
    slope is 0 where the polynomial is clamped.
    """
    if kind == "off":
        return raw, None
    if kind == "tanh":
        unit = raw.div_(cap).tanh_()
        return unit * cap, unit.square_().neg_().add_(1.0)
    u = raw.div_(cap).clamp_(-2.0, 2.0)
    square = u * u
    slope = (square / 3.0).sub_(1.0).mul_(square).add_(1.0)
    unit = square.div(15.0).sub_(1.0 / 3.0).mul_(square).add_(1.0).mul_(u)
    slope.mul_(unit.abs() < 1.0)
    return unit.clamp_(-1.0, 1.0).mul_(cap), slope


def token_nats_torch(
    logits_nV: Float[Tensor, "n V"], targets_n: Int[Tensor, " n"], temperature: float
) -> Float[Tensor, " n"]:
    """`token_nats` in plain PyTorch."""
    scaled_nV = logits_nV if temperature == 1.0 else logits_nV / temperature
    return scaled_nV.logsumexp(-1) - scaled_nV.gather(-1, targets_n.unsqueeze(-1)).squeeze(-1)
