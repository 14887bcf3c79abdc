"""The Epps–Pulley statistic against N(0, 1), with its gradient, one knot after the other.

    statistic = Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],  φ_k = e^{−t_k²/2}

The knots are evenly spaced, so e^{i t_{k+1} x} is e^{i t_k x} turned by the fixed angle Δt·x: two sines and cosines in
all instead of K, and N × M × K values never exist at once.

Legend: S samples that are tested apart, N draws of a sample, M directions, K knots.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import on_device, use_triton

MOST_KNOTS = 64
"""Knots that the kernels take: the sums of each are held in registers."""
SUMS = {"BLOCK_N": 8, "BLOCK_M": 32, "num_warps": 4}
GRADIENT = {"BLOCK_N": 32, "BLOCK_M": 64, "num_warps": 4}
"""Tiles of a program of each kernel, and its warps."""
PROGRAMS = 4096
"""Programs that share the draws are about as many, as long as each has `ROWS` of them."""
ROWS = 256


class _EppsPulley(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_SNM: Tensor, t_K: Tensor, w_K: Tensor, sums_SK2M: Tensor, draws: Tensor | int) -> Tensor:
        means_KS2M = (sums_SK2M / draws).transpose(0, 1)
        cos_gap_KSM = means_KS2M[:, :, 0] - torch.exp(-(t_K**2) / 2)[:, None, None]
        sin_KSM = means_KS2M[:, :, 1]
        ctx.save_for_backward(x_SNM, t_K, w_K, cos_gap_KSM, sin_KSM)
        ctx.draws = draws
        return (w_K[:, None, None] * (cos_gap_KSM**2 + sin_KSM**2)).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_SNM, t_K, w_K, cos_gap_KSM, sin_gap_KSM = ctx.saved_tensors
        pull = _gradient_triton if _fits(x_SNM, t_K) else _gradient
        share_KSM = (2 * w_K * t_K / ctx.draws)[:, None, None] * grads[0]
        return pull(x_SNM, t_K, share_KSM * sin_gap_KSM, share_KSM * cos_gap_KSM), None, None, None, None


def epps_pulley(
    x_SNM: Float[Tensor, "S N M"],
    t_K: Float[Tensor, " K"],
    w_K: Float[Tensor, " K"],
    sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
    draws: Tensor | int = 0,
) -> Float[Tensor, "S M"]:
    """The statistic of S × M one-dimensional samples of N draws each, no factor N; the knots `t_K` evenly spaced.

    Where x is a part of the sample, the rest being in other micro-batches or on other ranks, `sums_SK2M` are the whole
    sample's `characteristic_sums` and `draws` its N. The value is then that of the whole, and the gradient that by the
    part: added up over the parts, they are the gradient by the whole sample. fp32 (or fp64) throughout. Has a gradient
    by x alone, and no second one.
    """
    if sums_SK2M is None:
        sums_SK2M, draws = characteristic_sums(x_SNM, t_K), x_SNM.shape[1]
    return cast(Tensor, _EppsPulley.apply(x_SNM, t_K, w_K, sums_SK2M, draws))  # type: ignore[no-untyped-call]


@torch.no_grad()
def characteristic_sums(x_SNM: Float[Tensor, "S N M"], t_K: Float[Tensor, " K"]) -> Float[Tensor, "S K 2 M"]:
    """Σ_n cos t_k x_n and Σ_n sin t_k x_n, without a gradient: those of a sample are the sum of its parts'."""
    return _sums_triton(x_SNM, t_K) if _fits(x_SNM, t_K) else _sums(x_SNM, t_K)


def _fits(x_SNM: Tensor, t_K: Tensor) -> bool:
    return (
        use_triton(x_SNM) and x_SNM.dtype == t_K.dtype == torch.float32 and len(t_K) <= MOST_KNOTS and x_SNM.numel() > 0
    )


def _sums(x_SNM: Tensor, t_K: Tensor) -> Tensor:
    step = t_K[1] - t_K[0]
    cos, sin = torch.cos(t_K[0] * x_SNM), torch.sin(t_K[0] * x_SNM)
    turn_cos, turn_sin = torch.cos(step * x_SNM), torch.sin(step * x_SNM)
    sums = []
    for k in range(len(t_K)):
        if k > 0:
            cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        sums.append(torch.stack([cos.sum(1), sin.sum(1)], dim=1))
    return torch.stack(sums, dim=1)


def _gradient(x_SNM: Tensor, t_K: Tensor, a_KSM: Tensor, b_KSM: Tensor) -> Tensor:
    """Σ_k a_k cos t_k x − b_k sin t_k x."""
    step = t_K[1] - t_K[0]
    cos, sin = torch.cos(t_K[0] * x_SNM), torch.sin(t_K[0] * x_SNM)
    turn_cos, turn_sin = torch.cos(step * x_SNM), torch.sin(step * x_SNM)
    result = torch.zeros_like(x_SNM)
    for k in range(len(t_K)):
        if k > 0:
            cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        result += a_KSM[k].unsqueeze(1) * cos - b_KSM[k].unsqueeze(1) * sin
    return result


def _sums_triton(x_SNM: Tensor, t_K: Tensor) -> Tensor:
    """`_sums` by the kernel: x is read once."""
    from jepamba.ops.epps_pulley import triton_kernels as kernels

    samples, draws, directions = x_SNM.shape
    blocks = -(-directions // SUMS["BLOCK_M"])
    rows = max(ROWS, -(-draws * samples * blocks // PROGRAMS))
    parts = -(-draws // rows)
    sums = torch.empty(parts, samples, len(t_K), 2, directions, device=x_SNM.device)
    with on_device(x_SNM):
        kernels.sums_kernel[(blocks, parts, samples)](
            x_SNM.contiguous(), t_K.contiguous(), sums, draws, directions, rows, K=len(t_K), **SUMS
        )
    return sums.sum(0)


def _gradient_triton(x_SNM: Tensor, t_K: Tensor, a_KSM: Tensor, b_KSM: Tensor) -> Tensor:
    """`_pull` by the kernel: x is read once and the result written once."""
    from jepamba.ops.epps_pulley import triton_kernels as kernels

    samples, draws, directions = x_SNM.shape
    x_SNM = x_SNM.contiguous()
    result = torch.empty_like(x_SNM)
    grid = (-(-directions // GRADIENT["BLOCK_M"]), -(-draws // GRADIENT["BLOCK_N"]), samples)
    with on_device(x_SNM):
        kernels.gradient_kernel[grid](
            x_SNM, t_K.contiguous(), a_KSM.contiguous(), b_KSM.contiguous(), result,
            draws, directions, samples, len(t_K), **GRADIENT,
        )  # fmt: skip
    return result
