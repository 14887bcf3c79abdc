"""Matrix products with fp32 results from bf16 operands on tensor cores.

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
    """Return a b, accumulated and returned in fp32."""
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and a.dtype != torch.float32 else a.float() @ b.float()


def projected(x: Float[Tensor, "*batch E"], directions_EM: Float[Tensor, "E M"]) -> Float[Tensor, "*batch M"]:
    """Return x D with fp32 precision. The directions D are fp32 and get no gradient.

    For bf16 x on a GPU, each direction is split into three bf16 values of 8 bits, and one product with three times the
    inputs adds them. This takes at most a third of the time of an fp32 product. The gradient uses 16 bits of each
    factor, because it is rounded to bf16.
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
        high, middle, low = _bf16_terms(directions_EM, 3)
        out_NM = product_fp32(torch.cat([x_NE, x_NE, x_NE], 1), torch.cat([high, middle, low]))
        return out_NM.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (directions_EM,) = ctx.saved_tensors
        dout_NM = grads[0].reshape(-1, directions_EM.shape[1])
        (high, low), (d_high, d_low) = _bf16_terms(directions_EM.t(), 2), _bf16_terms(dout_NM, 2)
        dx_NE = torch.cat([d_high, d_low, d_high], 1) @ torch.cat([high, high, low])
        return dx_NE.view(*grads[0].shape[:-1], -1), None


def _bf16_terms(value: Tensor, count: int) -> list[Tensor]:
    """Split fp32 `value` into `count` bf16 tensors, whose sum approximates it with 8 bits each."""
    terms = []
    for _ in range(count):
        terms.append(value.bfloat16())
        value = value - terms[-1].float()
    return terms
