"""The row-wise operations between the matrix products: plain PyTorch here, and one Triton kernel each on a GPU.

They are fp32 inside and have their first argument's dtype outside, in both implementations.
On the CPU, and in fp64, the plain functions are what runs; they are also what the kernels are compared with.

Legend: B batch, T time, D width of the stream, I inner width of a mixer, M hidden width of an MLP.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton

RMS_EPS = 1e-6
"""Epsilon of every weightless RMSNorm."""
GATED_NORM_EPS = 1e-5
"""Epsilon of the gated RMSNorm before a mixer's output projection."""


def rms(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """`x` divided by the root mean square of its last dimension; no weight."""
    if use_triton(x):
        from jepamba.ops.norms.triton import AddNorm

        normed: Tensor = AddNorm.apply(x, None, RMS_EPS)[1]  # type: ignore[no-untyped-call]
        return normed
    return F.rms_norm(x, x.shape[-1:], eps=RMS_EPS).to(x.dtype)


def add_norm(
    x: Float[Tensor, "*batch D"], branch: Float[Tensor, "*batch D"]
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """(x + branch, rms(x + branch))."""
    if use_triton(x):
        from jepamba.ops.norms.triton import AddNorm

        both: tuple[Tensor, Tensor] = AddNorm.apply(x, branch.to(x.dtype), RMS_EPS)  # type: ignore[no-untyped-call]
        return both
    total = x + branch.to(x.dtype)
    return total, rms(total)


def mix_norm(
    x: Float[Tensor, "*batch D"],
    x0: Float[Tensor, "*batch D"],
    mix: Float[Tensor, "2 D"],
    skip: Float[Tensor, "*batch D"] | None = None,
    skip_weight: Float[Tensor, " D"] | None = None,
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"], Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """(mixed, rms(mixed), x0, x), mixed = mix₀·(x + skip_weight·skip) + mix₁·x0: a block's entrance.

    x0 and x are handed on unchanged: who reads them from here leaves their gradient to be added in the same pass.
    """
    if use_triton(x):
        from jepamba.ops.norms.triton import MixNorm

        four: tuple[Tensor, Tensor, Tensor, Tensor] = MixNorm.apply(  # type: ignore[no-untyped-call]
            x, x0, mix, skip, skip_weight, RMS_EPS
        )
        return four
    sum_ = x if skip is None or skip_weight is None else x + skip_weight * skip
    mixed = mix[0] * sum_ + mix[1] * x0
    return mixed.to(x.dtype), rms(mixed).to(x.dtype), x0, x


def gated_norm(
    y: Float[Tensor, "*batch I"], z: Float[Tensor, "*batch I"], weight: Float[Tensor, " I"]
) -> Float[Tensor, "*batch I"]:
    """weight · rmsnorm(y · silu(z)), in fp32 inside and in y's dtype outside."""
    if use_triton(y):
        from jepamba.ops.norms.triton import GatedNorm

        out: Tensor = GatedNorm.apply(y, z.to(y.dtype), weight, GATED_NORM_EPS)  # type: ignore[no-untyped-call]
        return out
    gated = y * F.silu(z)
    wide = gated if gated.dtype == torch.float64 else gated.float()
    return F.rms_norm(wide, y.shape[-1:], weight, eps=GATED_NORM_EPS).to(gated.dtype)


def relu2_norm(u: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
    """rms(relu(u)²)."""
    if use_triton(u):
        from jepamba.ops.norms.triton import Relu2Norm

        out: Tensor = Relu2Norm.apply(u, RMS_EPS)  # type: ignore[no-untyped-call]
        return out
    return rms(F.relu(u).square())
