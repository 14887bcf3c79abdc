"""The loss by its definition, in float64 with all logits: the reference for the other implementations.

Legend: N tokens, E features, V vocabulary.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor


def capped_cross_entropy_reference(
    features_NE: Float[Tensor, "N E"],
    matrix_VE: Float[Tensor, "V E"],
    bias_V: Float[Tensor, " V"],
    targets_N: Int[Tensor, " N"],
    kind: str,
    cap: float,
    z_weight: float,
) -> tuple[Float64[Tensor, ""], Float64[Tensor, ""], Float64[Tensor, ""]]:
    """Return (total, ce, z) as in `capped_cross_entropy`. Differentiable in every float input."""
    logits_NV = features_NE.double() @ matrix_VE.double().T + bias_V.double()
    if kind == "tanh":
        logits_NV = cap * torch.tanh(logits_NV / cap)
    if kind == "poly":
        u = (logits_NV / cap).clamp(-2, 2)
        logits_NV = cap * (u * (1 - u**2 / 3 + u**4 / 15)).clamp(-1, 1)
    lse_N = torch.log(torch.exp(logits_NV).sum(1))
    ce = (lse_N - logits_NV[torch.arange(len(targets_N)), targets_N]).mean()
    z = (lse_N**2).mean()
    return ce + z_weight * z, ce, z
