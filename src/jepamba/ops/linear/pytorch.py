"""The product with a weight matrix in plain PyTorch.

Legend: K inputs, R rows of the matrix, O rows of the product (R, or more).
"""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def linear_torch(
    x: Float[Tensor, "*batch K"], w_RK: Float[Tensor, "R K"], scale_R: Float[Tensor, " R"] | None, rows: int
) -> Float[Tensor, "*batch O"]:
    """Return x (scale · W)ᵀ, padded with zeros to `rows` outputs if `rows` is larger.

    The scale multiplies the smaller tensor: the outputs for few tokens, the weights for many.
    """
    if scale_R is not None and scales_weights(x, w_RK):
        w_RK, scale_R = (scale_R.unsqueeze(1) * w_RK).to(w_RK.dtype), None
    if rows > w_RK.shape[0]:
        padding = rows - w_RK.shape[0]
        w_RK, scale_R = F.pad(w_RK, (0, 0, 0, padding)), None if scale_R is None else F.pad(scale_R, (0, padding))
    out = F.linear(x, w_RK)
    return out if scale_R is None else (scale_R * out).to(out.dtype)


def scales_weights(x: Tensor, w_RK: Tensor) -> bool:
    """Whether a scale multiplies the weights."""
    return x.numel() // x.shape[-1] > w_RK.shape[1]
