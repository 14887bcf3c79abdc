"""The product with a cached weight matrix as one autograd function with an fp32 weight gradient.

Scale and padding use one kernel per direction. Plain PyTorch would launch ten kernels and round the gradient to bf16.

Legend: N tokens, K inputs, R rows of the matrix, O rows of the product (R, or more).
"""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import num_warps, on_device
from jepamba.ops.linear.products import product_fp32
from jepamba.ops.linear.triton_kernels import scale_and_pad_gradient_kernel, scale_and_pad_kernel


def cached_linear(
    x: Float[Tensor, "*batch K"], w_RK: Float[Tensor, "R K"], scale_R: Float[Tensor, " R"] | None, rows: int
) -> Float[Tensor, "*batch O"]:
    """Return x (scale · W)ᵀ, with W zero-padded to at least `rows` rows. x and W have the same dtype.

    The gradient of W is always fp32, so a leaf with `grad_dtype` fp32 receives it without rounding.
    """
    scale_R = None if scale_R is None else scale_R.contiguous()
    return cast(Tensor, CachedLinear.apply(x, w_RK, scale_R, max(rows, len(w_RK))))  # type: ignore[no-untyped-call]


def scale_and_pad(w_RK: Tensor, scale_R: Tensor | None, rows: int) -> Tensor:
    """Return (rows, K): scale · W, then rows of zeros."""
    if scale_R is None and rows == len(w_RK):
        return w_RK
    R, K = w_RK.shape
    padded_OK = w_RK.new_empty(rows, K)
    block = triton.next_power_of_2(K)
    with on_device(w_RK):
        scale_and_pad_kernel[(rows,)](
            w_RK, w_RK if scale_R is None else scale_R, padded_OK, R, K,
            HAS_SCALE=scale_R is not None, BLOCK=block, num_warps=num_warps(block),
        )  # fmt: skip
    return padded_OK


def scale_and_pad_gradient(w_RK: Tensor, scale_R: Tensor, dpadded_OK: Tensor) -> tuple[Tensor, Tensor]:
    """Return (dW, dscale) in fp32 from the gradient of the result of `scale_and_pad`."""
    R, K = w_RK.shape
    dw_RK, dscale_R = w_RK.new_empty(R, K, dtype=torch.float32), w_RK.new_empty(R, dtype=torch.float32)
    block = triton.next_power_of_2(K)
    with on_device(w_RK):
        scale_and_pad_gradient_kernel[(R,)](
            w_RK, scale_R, dpadded_OK, dw_RK, dscale_R, K, BLOCK=block, num_warps=num_warps(block)
        )
    return dw_RK, dscale_R


class CachedLinear(torch.autograd.Function):
    """See `cached_linear`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w_RK: Tensor, scale_R: Tensor | None, rows: int) -> Tensor:
        w_RK = w_RK.contiguous()
        x_NK, padded_OK = x.reshape(-1, x.shape[-1]), scale_and_pad(w_RK, scale_R, rows)
        ctx.save_for_backward(x_NK, w_RK, scale_R, padded_OK)
        return (x_NK @ padded_OK.t()).view(*x.shape[:-1], rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_NK, w_RK, scale_R, padded_OK = ctx.saved_tensors
        dy_NO = grads[0].reshape(-1, len(padded_OK))
        dx = dw_RK = dscale_R = None
        if ctx.needs_input_grad[0]:
            dx = (dy_NO @ padded_OK).view(*grads[0].shape[:-1], x_NK.shape[1])
        if ctx.needs_input_grad[1]:
            dw_RK = product_fp32(dy_NO.t(), x_NK)
            if scale_R is not None:
                dw_RK, dscale_R = scale_and_pad_gradient(w_RK, scale_R, dw_RK)
            else:
                dw_RK = dw_RK[: len(w_RK)]
        return dx, dw_RK, dscale_R, None
