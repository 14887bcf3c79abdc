"""The Epps–Pulley statistic against N(0, 1).

    statistic = Σ_k w_k [(mean_n cos t_k x_n − φ_k)² + (mean_n sin t_k x_n)²],  φ_k = e^{−t_k²/2}

(Epps & Pulley 1983. SIGReg uses it: Balestriero & LeCun 2025, arXiv 2511.08544.)

Legend: S samples, each with its own statistic, N values of a sample, M directions, K knots.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.ops.epps_pulley.pytorch import gradient_torch, sums_torch

MAX_KNOTS = 64
"""Maximum knots of the kernels, which keep the sums of each knot in registers."""


def epps_pulley(
    x_SNM: Float[Tensor, "S N M"],
    t_K: Float[Tensor, " K"],
    w_K: Float[Tensor, " K"],
    sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
    num_values: Tensor | int = 0,
) -> Float[Tensor, "S M"]:
    """Return the statistic, without the factor N, of S × M one-dimensional samples of N values each.

    Computation is fp32, or fp64 for fp64 inputs. Only x gets a gradient. There is no second derivative.

    Arguments: `t_K`: evenly spaced knots; `w_K`: their weights. If x is only a subset of the sample (other
    micro-batches or ranks have the rest): `sums_SK2M`: the sum of the `characteristic_sums` of all subsets;
    `num_values`: N of the whole sample. Then the result is the statistic of the whole sample, with its gradient with
    respect to this subset.
    """
    if sums_SK2M is None:
        sums_SK2M, num_values = characteristic_sums(x_SNM, t_K), x_SNM.shape[1]
    return cast(Tensor, _EppsPulley.apply(x_SNM, t_K, w_K, sums_SK2M, num_values))  # type: ignore[no-untyped-call]


@torch.no_grad()
def characteristic_sums(x_SNM: Float[Tensor, "S N M"], t_K: Float[Tensor, " K"]) -> Float[Tensor, "S K 2 M"]:
    """Return Σ_n cos t_k x_n and Σ_n sin t_k x_n, without a gradient. Add the results of subsets of a sample."""
    if _use_triton(x_SNM, t_K):
        from jepamba.ops.epps_pulley.triton import sums_triton

        return sums_triton(x_SNM, t_K)
    return sums_torch(x_SNM, t_K)


class _EppsPulley(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_SNM: Tensor, t_K: Tensor, w_K: Tensor, sums_SK2M: Tensor, num_values: Tensor | int
    ) -> Tensor:
        means_KS2M = (sums_SK2M / num_values).transpose(0, 1)
        cos_gap_KSM = means_KS2M[:, :, 0] - torch.exp(-(t_K**2) / 2)[:, None, None]
        sin_KSM = means_KS2M[:, :, 1]
        ctx.save_for_backward(x_SNM, t_K, w_K, cos_gap_KSM, sin_KSM)
        ctx.num_values = num_values
        return (w_K[:, None, None] * (cos_gap_KSM**2 + sin_KSM**2)).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        x_SNM, t_K, w_K, cos_gap_KSM, sin_gap_KSM = ctx.saved_tensors
        share_KSM = (2 * w_K * t_K / ctx.num_values)[:, None, None] * grads[0]
        factors = share_KSM * sin_gap_KSM, share_KSM * cos_gap_KSM
        if _use_triton(x_SNM, t_K):
            from jepamba.ops.epps_pulley.triton import gradient_triton

            return gradient_triton(x_SNM, t_K, *factors), None, None, None, None
        return gradient_torch(x_SNM, t_K, *factors), None, None, None, None


def _use_triton(x_SNM: Tensor, t_K: Tensor) -> bool:
    return (
        use_triton(x_SNM) and x_SNM.dtype == t_K.dtype == torch.float32 and len(t_K) <= MAX_KNOTS and x_SNM.numel() > 0
    )
