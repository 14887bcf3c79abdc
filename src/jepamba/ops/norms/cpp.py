"""The norms as autograd functions over C++ kernels (`kernels.cpp`), for training on a CPU."""

from __future__ import annotations

import ctypes
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.cpp import DTYPES, LANES, kernels_of, pointer, use_cpp
from jepamba.ops.norms.pytorch import RMS_EPS

_BLOCK = 32
"""As in the kernels."""


def _kernels() -> ctypes.CDLL | None:
    return kernels_of("norms")


def is_supported(x: Tensor) -> bool:
    """Whether the kernels support this pass, dtype, device and width, and could be compiled."""
    return torch.is_grad_enabled() and use_cpp(x) and x.shape[-1] % LANES == 0 and _kernels() is not None


def _call(name: str, x: Tensor, *tensors: Tensor | None) -> None:
    """Call a kernel with the rows of `x` and its other arguments, all contiguous."""
    D = x.shape[-1]
    sizes = ctypes.c_int64(x.numel() // D), ctypes.c_int64(D), ctypes.c_float(RMS_EPS)
    getattr(_kernels(), f"{name}_{DTYPES[x.dtype]}")(*sizes, pointer(x), *map(pointer, tensors))


def _whole(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


class CppAddNorm(torch.autograd.Function):
    """See `norms.add_norm`; without a branch, total is x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.contiguous()
        total, normed = x if branch is None else torch.empty_like(x), torch.empty_like(x)
        _call("add_norm", x, _whole(branch), total, normed)
        ctx.save_for_backward(total)
        ctx.has_branch = branch is not None
        ctx.set_materialize_grads(False)
        return total, normed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (total,) = ctx.saved_tensors
        dx, dnormed = grads
        if dnormed is not None:
            dtotal, dx = _whole(dx), torch.empty_like(total)
            _call("add_norm_backward", total, dtotal, dnormed.contiguous(), dx)
        return dx, dx if ctx.has_branch else None


class CppMixNorm(torch.autograd.Function):
    """See `norms.mix_norm`. The weights are fp32."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, x0: Tensor, mix: Tensor, skip: Tensor | None, weight: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        inputs = x.contiguous(), x0.contiguous(), mix.contiguous(), _whole(skip), _whole(weight)
        mixed, normed = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
        _call("mix_norm", *inputs, mixed, normed)
        ctx.save_for_backward(*inputs)
        ctx.set_materialize_grads(False)
        return mixed, normed, x0, x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x, x0, mix, skip, weight = ctx.saved_tensors
        dmixed, dnormed, dx0_later, dx_later = map(_whole, grads)
        dnormed = torch.zeros_like(x) if dnormed is None else dnormed
        dx, dx0 = torch.empty_like(x), torch.empty_like(x)
        dskip = None if skip is None else torch.empty_like(x)
        blocks = -(-x.numel() // x.shape[-1] // _BLOCK)
        sums_K3D = mix.new_zeros(blocks, 3, x.shape[-1])
        _call(
            "mix_norm_backward",
            x, x0, mix, skip, weight, dmixed, dnormed, dx0_later, dx_later, dx, dx0, dskip, sums_K3D,
        )  # fmt: skip
        sums_3D = sums_K3D.sum(0)
        return dx, dx0, sums_3D[:2], dskip, None if weight is None else sums_3D[2]


class CppRelu2Norm(torch.autograd.Function):
    """See `norms.relu2_norm`."""

    @staticmethod
    def forward(ctx: Any, u: Tensor) -> Tensor:
        u = u.contiguous()
        out = torch.empty_like(u)
        _call("relu2_norm", u, out)
        ctx.save_for_backward(u)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        (u,) = ctx.saved_tensors
        du = torch.empty_like(u)
        _call("relu2_norm_backward", u, grads[0].contiguous(), du)
        return du
