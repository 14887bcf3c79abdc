"""RMS norms with fused row-wise operations: plain PyTorch, one Triton kernel each on a GPU, or, for training, one C++
kernel each on a CPU.

All compute in fp32 inside and return the dtype of their first argument.

Legend: B batch, T time, D width of the residual stream, I inner width of a mixer, M hidden width of an MLP.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.ops.norms.cpp import CppAddNorm, CppMixNorm, CppRelu2Norm, is_supported
from jepamba.ops.norms.pytorch import (
    GATED_NORM_EPS,
    RMS_EPS,
    add_norm_torch,
    gated_norm_torch,
    mix_norm_torch,
    relu2_norm_torch,
    rms_torch,
)

__all__ = ["GATED_NORM_EPS", "RMS_EPS", "add_norm", "gated_norm", "mix_norm", "relu2_norm", "rms"]


def rms(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """Divide `x` by the root mean square of its last dimension, without a weight."""
    if use_triton(x):
        from jepamba.ops.norms.triton import AddNorm

        normed: Tensor = AddNorm.apply(x, None, RMS_EPS)[1]  # type: ignore[no-untyped-call]
        return normed
    if is_supported(x):
        return CppAddNorm.apply(x, None)[1]  # type: ignore[no-any-return, no-untyped-call]
    return rms_torch(x)


def add_norm(
    x: Float[Tensor, "*batch D"], branch: Float[Tensor, "*batch D"]
) -> tuple[Float[Tensor, "*batch D"], Float[Tensor, "*batch D"]]:
    """Return (x + branch, rms(x + branch))."""
    if use_triton(x):
        from jepamba.ops.norms.triton import AddNorm

        both: tuple[Tensor, Tensor] = AddNorm.apply(x, branch.to(x.dtype), RMS_EPS)  # type: ignore[no-untyped-call]
        return both
    if is_supported(x):
        return CppAddNorm.apply(x, branch.to(x.dtype))  # type: ignore[no-any-return, no-untyped-call]
    return add_norm_torch(x, branch)


def mix_norm(
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
    if use_triton(x):
        from jepamba.ops.norms.triton import MixNorm

        four: tuple[Tensor, Tensor, Tensor, Tensor] = MixNorm.apply(  # type: ignore[no-untyped-call]
            x, x0, mix, skip, skip_weight, RMS_EPS
        )
        return four
    if is_supported(x):
        return CppMixNorm.apply(x, x0, mix, skip, skip_weight)  # type: ignore[no-any-return, no-untyped-call]
    return mix_norm_torch(x, x0, mix, skip, skip_weight)


def gated_norm(
    y: Float[Tensor, "*batch I"], z: Float[Tensor, "*batch I"], weight: Float[Tensor, " I"]
) -> Float[Tensor, "*batch I"]:
    """Return weight · rmsnorm(y · silu(z)), computed in fp32, in the dtype of y."""
    if use_triton(y):
        from jepamba.ops.norms.triton import GatedNorm

        out: Tensor = GatedNorm.apply(y, z.to(y.dtype), weight, GATED_NORM_EPS)  # type: ignore[no-untyped-call]
        return out
    return gated_norm_torch(y, z, weight)


def relu2_norm(u: Float[Tensor, "*batch M"]) -> Float[Tensor, "*batch M"]:
    """Return rms(relu(u)²)."""
    if use_triton(u):
        from jepamba.ops.norms.triton import Relu2Norm

        out: Tensor = Relu2Norm.apply(u, RMS_EPS)  # type: ignore[no-untyped-call]
        return out
    if is_supported(u):
        return CppRelu2Norm.apply(u)  # type: ignore[no-any-return, no-untyped-call]
    return relu2_norm_torch(u)
