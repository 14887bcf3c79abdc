"""The norms as autograd functions over Triton kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import num_programs, on_device
from jepamba.ops.norms.relu2_kernels import relu2_norm_gradient_kernel, relu2_norm_kernel
from jepamba.ops.norms.triton_kernels import (
    add_norm_gradient_kernel,
    add_norm_kernel,
    gated_norm_gradient_kernel,
    gated_norm_kernel,
    mix_norm_gradient_kernel,
    mix_norm_kernel,
)
from jepamba.ops.partial_sums import sum_partials


def row_settings(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return (N, launch settings) of a tensor with N rows of D values, at most eight pieces per row."""
    D = x.shape[-1]
    piece = max(32, triton.next_power_of_2(D) // 8)
    return x.numel() // D, {"D": D, "P": piece, "num_warps": min(max(2, piece // 256), 16)}


def gradient_settings(x: Tensor) -> tuple[int, dict[str, int]]:
    """Return the same for kernels whose programs take several rows each (docs/results/gpu-step-2026-11-29.md)."""
    N, settings = row_settings(x)
    return N, settings | {"num_warps": settings["num_warps"] // 2, "STAGES": 3}


class AddNorm(torch.autograd.Function):
    """See `norms.add_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        N, settings = row_settings(x)
        total = x if branch is None else torch.empty_like(x)
        normed = torch.empty_like(x)
        with on_device(x):
            add_norm_kernel[(N,)](
                x, x if branch is None else branch.contiguous(), total, normed, eps,
                HAS_BRANCH=branch is not None, **settings,
            )  # fmt: skip
        ctx.save_for_backward(total)
        ctx.eps, ctx.has_branch = eps, branch is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (total,) = ctx.saved_tensors
        dtotal, dnormed = grads
        if dnormed is None:
            return dtotal, dtotal if ctx.has_branch else None, None
        N, settings = row_settings(total)
        dx = torch.empty_like(total)
        with on_device(total):
            add_norm_gradient_kernel[(N,)](
                total, total if dtotal is None else dtotal.contiguous(), dnormed.contiguous(), dx, ctx.eps,
                HAS_DTOTAL=dtotal is not None, **settings,
            )  # fmt: skip
        return dx, dx if ctx.has_branch else None, None


class MixNorm(torch.autograd.Function):
    """See `norms.mix_norm`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x0: Tensor, mix: Tensor, skip: Tensor | None, weight: Tensor | None, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, x0 = x.contiguous(), x0.contiguous()
        N, settings = row_settings(x)
        mixed, normed = torch.empty_like(x), torch.empty_like(x)
        mix_fp32 = mix.detach().float().contiguous()
        weight_fp32 = None if weight is None else weight.detach().float().contiguous()
        skip = None if skip is None else skip.contiguous()
        with on_device(x):
            mix_norm_kernel[(N,)](
                x, x0, x if skip is None else skip, mix_fp32, mix_fp32 if weight_fp32 is None else weight_fp32,
                mixed, normed, eps, HAS_SKIP=skip is not None, **settings,
            )  # fmt: skip
        ctx.save_for_backward(x, x0, mix_fp32, skip, weight_fp32)
        ctx.eps, ctx.dtypes = eps, (mix.dtype, None if weight is None else weight.dtype)
        ctx.set_materialize_grads(False)
        return mixed, normed, x0, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, x0, mix, skip, weight = ctx.saved_tensors
        dmixed, dnormed, dx0_later, dx_later = grads
        if dnormed is None:
            dnormed = torch.zeros_like(x)
        N, settings = gradient_settings(x)
        dx, dx0 = torch.empty_like(x), torch.empty_like(x)
        dskip = None if skip is None else torch.empty_like(x)
        count = num_programs(N)
        partials = x.new_empty(count, 3, x.shape[-1], dtype=torch.float32)
        with on_device(x):
            mix_norm_gradient_kernel[(count,)](
                x, x0, x if skip is None else skip, mix, mix if weight is None else weight,
                x if dmixed is None else dmixed.contiguous(), dnormed.contiguous(),
                x if dx0_later is None else dx0_later.contiguous(), x if dx_later is None else dx_later.contiguous(),
                dx, dx0, x if dskip is None else dskip, partials,
                N, ctx.eps,
                HAS_SKIP=skip is not None, HAS_DMIXED=dmixed is not None, HAS_DX0_LATER=dx0_later is not None,
                HAS_DX_LATER=dx_later is not None, **settings,
            )  # fmt: skip
        sums = sum_partials(partials)
        mix_dtype, weight_dtype = ctx.dtypes
        return dx, dx0, sums[:2].to(mix_dtype), dskip, None if weight is None else sums[2].to(weight_dtype), None


def gated_norm_forward(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return weight·rmsnorm(y·silu(z)). y (…, D) is contiguous, z can have strided rows, weight (D,) is fp32."""
    N, settings = row_settings(y)
    out = torch.empty_like(y)
    with on_device(y):
        gated_norm_kernel[(N,)](y, z, weight, out, z.stride(-2), eps, **settings)
    return out


def gated_norm_backward(
    dout: Tensor, y: Tensor, z: Tensor, weight: Tensor, eps: float, dz: Tensor
) -> tuple[Tensor, Tensor]:
    """Return (dy, dweight in fp32) and write dz, which can have strided rows."""
    N, settings = gradient_settings(y)
    dy = torch.empty_like(y)
    count = num_programs(N)
    partials = y.new_empty(count, y.shape[-1], dtype=torch.float32)
    with on_device(y):
        gated_norm_gradient_kernel[(count,)](
            y, z, weight, dout.contiguous(), dy, dz, partials, z.stride(-2), dz.stride(-2), N, eps, **settings
        )
    return dy, sum_partials(partials)


def _with_even_rows(z: Tensor) -> Tensor:
    """Return z, or a contiguous copy if its rows do not have one common stride."""
    steps = [z.stride(i) == z.stride(i + 1) * z.shape[i + 1] for i in range(z.dim() - 2)]
    return z if z.stride(-1) == 1 and all(steps) else z.contiguous()


class GatedNorm(torch.autograd.Function):
    """See `norms.gated_norm`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, z, weight_fp32 = y.contiguous(), _with_even_rows(z), weight.detach().float().contiguous()
        ctx.save_for_backward(y, z, weight_fp32)
        ctx.eps, ctx.dtype = eps, weight.dtype
        return gated_norm_forward(y, z, weight_fp32, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        y, z, weight = ctx.saved_tensors
        dz = torch.empty_like(z)
        dy, dweight = gated_norm_backward(grads[0], y, z, weight, ctx.eps, dz)
        return dy, dz, dweight.to(ctx.dtype), None


class Relu2Norm(torch.autograd.Function):
    """See `norms.relu2_norm`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, eps: float) -> Tensor:
        u = u.contiguous()
        N, settings = row_settings(u)
        out = torch.empty_like(u)
        with on_device(u):
            relu2_norm_kernel[(N,)](u, out, eps, **settings)
        ctx.save_for_backward(u)
        ctx.eps = eps
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        N, settings = row_settings(u)
        du = torch.empty_like(u)
        with on_device(u):
            relu2_norm_gradient_kernel[(N,)](u, grads[0].contiguous(), du, ctx.eps, **settings)
        return du, None
