"""The operators of the latent predictor in plain PyTorch: the CPU path, and in float64 the reference.

Legend: B batch, T time, S positions with a target (T − k), E latent size, M hidden size of the predictor.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bias_gelu_torch(u: Float[Tensor, "*batch M"], bias: Float[Tensor, " M"]) -> Float[Tensor, "*batch M"]:
    """Return gelu(u + bias) with the exact GELU."""
    return F.gelu(u + bias)


def shifted_error_torch(
    prediction_BTE: Float[Tensor, "B T E"], target_BTE: Float[Tensor, "B T E"], weight_BT: Float[Tensor, "B T"], k: int
) -> tuple[Float[Tensor, ""], Float[Tensor, "B T E"], Float[Tensor, "B T E"]]:
    """Return (Σ_{b,t} weight · |prediction_t − target_{t+k}|² in fp32, prediction, target)."""
    wide = torch.promote_types(prediction_BTE.dtype, torch.float32)
    S = prediction_BTE.shape[1] - k
    gap_BSE = prediction_BTE[:, :S].to(wide) - target_BTE[:, k:].to(wide)
    return (gap_BSE.square().sum(-1) * weight_BT[:, :S]).sum(), prediction_BTE, target_BTE
