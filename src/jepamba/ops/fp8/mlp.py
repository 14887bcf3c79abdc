"""The squared-ReLU MLP in FP8 as one autograd function, with rounding fused into the preceding kernels.

Separate rounding kernels would cost the time that the FP8 products save. The hidden activations exist only in FP8 until
the product, and the backward pass recomputes them.

Legend: N tokens, K = d_model, M hidden size.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import num_warps, on_device, use_triton
from jepamba.ops.fp8.linear import E4M3, Factor, Rounded, product, round_rows
from jepamba.ops.norms import RMS_EPS, relu2_norm


class Hidden(NamedTuple):
    """The tensors between the two products of the backward pass."""

    h_NM: Tensor
    """relu2_norm(u)."""
    du_NM: Tensor
    """The gradient of u."""
    rounded: Rounded
    """du times a factor for each column, in FP8."""


def fp8_mlp(x: Float[Tensor, "*batch K"], up: Factor, down: Factor) -> Float[Tensor, "*batch O"]:
    """Return relu2_norm(x Upᵀ) Downᵀ in bf16, with both products in FP8 as in `fp8_linear`."""
    return cast(Tensor, Fp8Mlp.apply(x.to(torch.bfloat16), *up, *down))  # type: ignore[no-untyped-call]


def hidden_rounded(u_NM: Tensor) -> Rounded:
    """Return relu2_norm(u) in FP8."""
    return hidden_rounded_triton(u_NM) if use_triton(u_NM) else round_rows(relu2_norm(u_NM))


def hidden_gradient(u_NM: Tensor, dh_NM: Tensor, factor_M: Tensor) -> Hidden:
    """Return relu2_norm(u), the gradient du from dh, and du · factor in FP8."""
    if use_triton(u_NM):
        return hidden_gradient_triton(u_NM, dh_NM, factor_M)
    with torch.enable_grad():
        leaf_NM = u_NM.detach().requires_grad_()
        h_NM = relu2_norm(leaf_NM)
        (du_NM,) = torch.autograd.grad(h_NM, leaf_NM, dh_NM)
    return Hidden(h_NM.detach(), du_NM, round_rows(du_NM, factor_M))


def _sizes(u_NM: Tensor) -> tuple[Rounded, dict[str, int]]:
    """Return (FP8 output buffers for u, launch settings). In the interpreter, PyTorch converts to FP8 afterwards."""
    block = 1 << (u_NM.shape[1] - 1).bit_length()
    codes_NM = torch.empty_like(u_NM, dtype=E4M3 if u_NM.is_cuda else torch.float32)
    return Rounded(codes_NM, u_NM.new_empty(len(u_NM), 1, dtype=torch.float32)), {
        "BLOCK": block,
        "num_warps": num_warps(block),
    }


def hidden_rounded_triton(u_NM: Tensor) -> Rounded:
    """`hidden_rounded` with the kernel, for contiguous u."""
    from jepamba.ops.fp8.triton_kernels import relu2_norm_round_kernel

    out, settings = _sizes(u_NM)
    with on_device(u_NM):
        relu2_norm_round_kernel[(len(u_NM),)](u_NM, *out, u_NM.shape[1], RMS_EPS, **settings)
    return Rounded(out.codes_NK.to(E4M3), out.scale_N1)


def hidden_gradient_triton(u_NM: Tensor, dh_NM: Tensor, factor_M: Tensor) -> Hidden:
    """`hidden_gradient` with the kernel, for contiguous u and dh."""
    from jepamba.ops.fp8.triton_kernels import relu2_norm_gradient_round_kernel

    out, settings = _sizes(u_NM)
    h_NM, du_NM = torch.empty_like(u_NM), torch.empty_like(u_NM)
    with on_device(u_NM):
        relu2_norm_gradient_round_kernel[(len(u_NM),)](
            u_NM, dh_NM, factor_M, h_NM, du_NM, *out, u_NM.shape[1], RMS_EPS, **settings
        )
    return Hidden(h_NM, du_NM, Rounded(out.codes_NK.to(E4M3), out.scale_N1))


class Fp8Mlp(torch.autograd.Function):
    """Forward products and input gradients in FP8, weight gradients in bf16."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, *factors: Tensor) -> Tensor:
        up, down = Factor(*factors[:5]), Factor(*factors[5:])
        x_NK = x.flatten(0, -2).contiguous()
        u_NM = product(round_rows(x_NK), up.codes_OK, up.scale_O)
        y_NO = product(hidden_rounded(u_NM), down.codes_OK, down.scale_O)
        ctx.save_for_backward(x_NK, u_NM, *up[2:], *down[2:])
        ctx.dtypes = up.w.dtype, down.w.dtype
        return y_NO.view(*x.shape[:-1], len(down.codes_OK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_NK, u_NM, up_KO, up_scale_O, up_ones_K, down_KO, down_scale_O, down_ones_K = ctx.saved_tensors
        dy_NO = grads[0].flatten(0, -2).contiguous()
        dh_NM = product(round_rows(dy_NO, down_scale_O), down_KO, down_ones_K)
        hidden = hidden_gradient(u_NM, dh_NM, up_scale_O)
        del dh_NM
        dx = None
        if ctx.needs_input_grad[0]:
            dx = product(hidden.rounded, up_KO, up_ones_K).view(*grads[0].shape[:-1], len(up_KO))
        dup = (hidden.du_NM.t() @ x_NK).to(ctx.dtypes[0])
        ddown = (dy_NO.t() @ hidden.h_NM).to(ctx.dtypes[1])
        return dx, dup, None, None, None, None, ddown, None, None, None, None
