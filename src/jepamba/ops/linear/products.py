"""Products that are finer than their factors: bf16 factors, multiplied by tensor cores, for results in fp32.

Legend: N rows, E columns, M directions.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import use_triton


def product_fp32(a: Float[Tensor, "N E"], b: Float[Tensor, "E M"]) -> Float[Tensor, "N M"]:
    """a b, summed and left in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()


def projected(x: Float[Tensor, "*batch E"], directions_EM: Float[Tensor, "E M"]) -> Float[Tensor, "*batch M"]:
    """x D in fp32, to fp32's precision; the directions are fp32 and get no gradient.

    On a GPU, of x in bf16, a direction is the sum of three numbers of bf16's eight bits, and the product that of three
    times as many columns: a third of what fp32 products cost, or less. The gradient, which is rounded to bf16 in the
    end, is the product of sixteen bits of each factor.
    """
    if use_triton(x) and x.dtype == torch.bfloat16:
        return cast(Tensor, Projected.apply(x, directions_EM))  # type: ignore[no-untyped-call]
    return x.float() @ directions_EM


class Projected(torch.autograd.Function):
    """See `projected`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, directions_EM: Tensor) -> Tensor:
        ctx.save_for_backward(directions_EM)
        x_NE = x.reshape(-1, x.shape[-1])
        high, middle, low = _parts(directions_EM, 3)
        out_NM = product_fp32(torch.cat([x_NE, x_NE, x_NE], 1), torch.cat([high, middle, low]))
        return out_NM.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (directions_EM,) = ctx.saved_tensors
        dout_NM = grads[0].reshape(-1, directions_EM.shape[1])
        (high, low), (d_high, d_low) = _parts(directions_EM.t(), 2), _parts(dout_NM, 2)
        dx_NE = torch.cat([d_high, d_low, d_high], 1) @ torch.cat([high, high, low])
        return dx_NE.view(*grads[0].shape[:-1], -1), None


def _parts(value: Tensor, count: int) -> list[Tensor]:
    """bf16 tensors whose sum is the fp32 `value`, to eight bits each."""
    parts = []
    for _ in range(count):
        parts.append(value.bfloat16())
        value = value - parts[-1].float()
    return parts
