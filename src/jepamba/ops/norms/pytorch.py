"""The row-wise operations in plain PyTorch: the path on a CPU, and in float64 the truth that the kernels are compared
with.

Legend: B batch, T time, D width of the residual stream, I inner width of a mixer, M hidden width of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

RMS_EPS = 1e-6
"""Epsilon of every weightless RMSNorm."""

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
    """(mixed, rms_torch(mixed), x0, x), mixed = mix₀·(x + skip_weight·skip) + mix₁·x0: a block's entrance.

    x0 and x are handed on unchanged: who reads them from here leaves their gradient to be added in the same pass.
    """
    sum_ = x if skip is None or skip_weight is None else x + skip_weight * skip
    mixed = mix[0] * sum_ + mix[1] * x0
    return mixed.to(x.dtype), rms_torch(mixed).to(x.dtype), x0, x


def gated_norm_torch(
    y: Float[Tensor, "*batch I"], z: Float[Tensor, "*batch I"], weight: Float[Tensor, " I"]
) -> Float[Tensor, "*batch I"]:
    """weight · rmsnorm(y · silu(z)), in fp32 inside and in y's dtype outside."""
    gated = y * F.silu(z)
    wide = gated if gated.dtype == torch.float64 else gated.float()
    return F.rms_norm(wide, y.shape[-1:], weight, eps=GATED_NORM_EPS).to(gated.dtype)


def relu2_norm_torch(u: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
    """rms(relu(u)²)."""
    return rms_torch(F.relu(u).square())
