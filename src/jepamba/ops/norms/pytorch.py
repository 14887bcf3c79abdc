"""The norms in plain PyTorch: the CPU implementation, and in float64 the reference for the kernels.

Legend: B batch, T time, D = d_model, I = d_inner of a mixer, M hidden size of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RMS_EPS = 1e-6
"""Epsilon of every RMSNorm without a weight."""

GATED_NORM_EPS = 1e-5
"""Epsilon of the gated RMSNorm before a mixer's output projection."""


def rms_torch(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """`x` divided by the root mean square of its last dimension; no weight."""
    return F.rms_norm(x, x.shape[-1:], eps=RMS_EPS).to(x.dtype)


def add_norm_torch(
    x: Float[Tensor, "*batch D"], branch: Float[Tensor, "*batch D"]
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """(x + branch, rms(x + branch))."""
    total = x + branch.to(x.dtype)
    return total, rms_torch(total)


def mix_norm_torch(
    x: Float[Tensor, "*batch D"],
    x0: Float[Tensor, "*batch D"],
    mix: Float[Tensor, "2 D"],
    skip: Float[Tensor, "*batch D"] | None = None,
    skip_weight: Float[Tensor, " D"] | None = None,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"], Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """Return (mixed, rms(mixed), x0, x) with mixed = mix₀·(x + skip_weight·skip) + mix₁·x0, the input of a block.

    x0 and x are returned unchanged. Later layers read these outputs, so that the backward pass of this function adds
    all their gradients in one kernel.
    """
    sum_ = x if skip is None or skip_weight is None else x + skip_weight * skip
    mixed = mix[0] * sum_ + mix[1] * x0
    return mixed.to(x.dtype), rms_torch(mixed).to(x.dtype), x0, x


def gated_norm_torch(
    y: Float[Tensor, "*batch I"], z: Float[Tensor, "*batch I"], weight: Float[Tensor, " I"]
) -> Float[Tensor, "*batch I"]:
    """Return weight · rmsnorm(y · silu(z)), computed in fp32, in the dtype of y."""
    gated = y * F.silu(z)
    wide = gated if gated.dtype == torch.float64 else gated.float()
    return F.rms_norm(wide, y.shape[-1:], weight, eps=GATED_NORM_EPS).to(gated.dtype)


def relu2_norm_torch(u: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
    """Return rms(relu(u)²)."""
    return rms_torch(F.relu(u).square())
