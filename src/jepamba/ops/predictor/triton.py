"""The operators of the latent predictor as autograd functions over Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import num_programs, num_warps, on_device
from jepamba.ops.partial_sums import sum_partials
from jepamba.ops.predictor.triton_kernels import (
    bias_gelu_gradient_kernel,
    bias_gelu_kernel,
    shifted_error_gradient_kernel,
    shifted_error_kernel,
)

ROWS, COLUMNS = 8, 512
"""Tile of the bias-and-GELU kernel."""

GRADIENT_COLUMNS = 256
"""Columns of a program of its backward kernel, in which one warp processes one row at a time."""


class BiasGelu(torch.autograd.Function):
    """See `predictor.bias_gelu`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, bias: Tensor) -> Tensor:
        u, bias = u.contiguous(), bias.contiguous()
        M = u.shape[-1]
        N = u.numel() // M
        out = torch.empty_like(u)
        with on_device(u):
            bias_gelu_kernel[(-(-N // ROWS) * -(-M // COLUMNS),)](u, bias, out, N, M, R=ROWS, BLOCK=COLUMNS)
        ctx.save_for_backward(u, bias)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        u, bias = ctx.saved_tensors
        M = u.shape[-1]
        N = u.numel() // M
        du = torch.empty_like(u)
        blocks = -(-M // GRADIENT_COLUMNS)
        count = num_programs(N)
        partials = u.new_empty(count, M, dtype=torch.float32)
        with on_device(u):
            bias_gelu_gradient_kernel[(blocks, count)](
                u, bias, grads[0].contiguous(), du, partials, N, M, BLOCK=GRADIENT_COLUMNS, num_warps=1
            )
        return du, sum_partials(partials).to(bias.dtype)


class ShiftedError(torch.autograd.Function):
    """See `predictor.shifted_error`."""

    @staticmethod
    def forward(ctx: Any, prediction: Tensor, target: Tensor, weight: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
        prediction, target, weight = prediction.contiguous(), target.contiguous(), weight.float().contiguous()
        D = prediction.shape[-1]
        N = prediction.numel() // D
        block = 1 << (D - 1).bit_length()
        partials = prediction.new_empty(num_programs(N), dtype=torch.float32)
        with on_device(prediction):
            shifted_error_kernel[(len(partials),)](
                prediction, target, weight, partials, N, D, k, BLOCK=block, num_warps=num_warps(block)
            )
        ctx.save_for_backward(prediction, target, weight)
        ctx.k = k
        ctx.set_materialize_grads(False)
        return partials.sum(), prediction, target

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        prediction, target, weight = ctx.saved_tensors
        dout, dprediction_later, dtarget_later = grads
        if dout is None:
            return dprediction_later, dtarget_later, None, None
        D = prediction.shape[-1]
        N = prediction.numel() // D
        block = 1 << (D - 1).bit_length()
        needs_dtarget = ctx.needs_input_grad[1]
        dprediction = torch.empty_like(prediction)
        dtarget = torch.empty_like(target) if needs_dtarget else None
        with on_device(prediction):
            shifted_error_gradient_kernel[(N,)](
                prediction, target, weight, dout.float(),
                target if dtarget_later is None else dtarget_later.contiguous(),
                prediction if dprediction_later is None else dprediction_later.contiguous(),
                dprediction, target if dtarget is None else dtarget, N, D, ctx.k,
                HAS_DTARGET_LATER=dtarget_later is not None, HAS_DPREDICTION_LATER=dprediction_later is not None,
                NEEDS_DTARGET=needs_dtarget, BLOCK=block, num_warps=num_warps(block),
            )  # fmt: skip
        return dprediction, dtarget, None, None
