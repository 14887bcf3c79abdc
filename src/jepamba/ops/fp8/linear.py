"""Matrix products in FP8 e4m3 (OCP 8-bit floating point specification, 2023), with a scale per row of both factors.

e4m3 has every integer up to 16, so integer-quantized weights of few bits and FP8 weights, with a scale per row, are
exact. Activations and, in the backward pass, output gradients are rounded to 3 mantissa bits. The relative RMS error
is 2.7 % and independent between values. Weight gradients are bf16 products.

Legend: N tokens, K inputs, O outputs (padded to a multiple of 16, as the hardware requires).
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from jepamba.ops.dispatch import num_warps, on_device, use_triton

E4M3 = torch.float8_e4m3fn
MULTIPLE = 16
"""The sizes of a matrix must be multiples of this."""
FAST_ACCUMULATION = True
"""Accumulate in the tensor cores, with fewer bits than fp32; see docs/performance.md."""
TILE = 4096
"""Values per program of the rounding kernel: one or more rows."""


class Rounded(NamedTuple):
    """A matrix in FP8 with a scale per row: codes · scale."""

    codes_NK: Tensor
    """E4M3."""
    scale_N1: Tensor
    """fp32, powers of two."""


class Weight8(NamedTuple):
    """A cached matrix W in FP8, in the layouts of x Wᵀ and of dy W. Padding rows are 0. `fill` keeps the storage."""

    codes_OK: Tensor
    codes_KO: Tensor
    scale_O: Tensor
    """fp32; W ≈ scale · codes."""
    ones_K: Tensor

    @staticmethod
    def empty(outputs: int, inputs: int, device: torch.device) -> Weight8:
        """Allocate a matrix (outputs, inputs)."""
        padded = -(-outputs // MULTIPLE) * MULTIPLE
        return Weight8(
            torch.zeros(padded, inputs, dtype=torch.uint8, device=device).view(E4M3),
            torch.zeros(inputs, padded, dtype=torch.uint8, device=device).view(E4M3),
            torch.zeros(padded, device=device),
            torch.ones(inputs, device=device),
        )

    def fill(self, w: Float[Tensor, "outputs K"], max_code: float) -> None:
        """Store `w`, with the largest magnitude of each row as `max_code`.

        The result is exact if w is codes of magnitude up to `max_code`, which occurs in each row, times a BF16 scale.
        """
        scale_R1 = (w.abs().amax(1, keepdim=True) / max_code).to(torch.bfloat16).float()
        codes_RK = (w / torch.where(scale_R1 > 0, scale_R1, 1.0)).to(E4M3)
        self.codes_OK[: len(w)].copy_(codes_RK)
        self.codes_KO[:, : len(w)].copy_(codes_RK.t())
        self.scale_O[: len(w)].copy_(scale_R1.squeeze(1))

    def factor(self, w: Float[Tensor, "O K"], scale: Float[Tensor, " outputs"] | None = None) -> Factor | None:
        """Return this matrix as a factor with rows multiplied by `scale`, or None if a size is not a multiple of 16.

        Arguments: `w`: the same matrix, scaled and padded, which gets the gradient.
        """
        if w.shape != self.codes_OK.shape or w.shape[1] % MULTIPLE:
            return None
        scale_O = self.scale_O
        if scale is not None:
            scale_O = scale_O * F.pad(scale.detach().float(), (0, len(scale_O) - len(scale)))
        return Factor(w, self.codes_OK, self.codes_KO, scale_O, self.ones_K)


class Factor(NamedTuple):
    """A matrix W (O, K) as an operand of a product."""

    w: Tensor
    """Gets the gradient. Its values are not read."""
    codes_OK: Tensor
    codes_KO: Tensor
    scale_O: Tensor
    ones_K: Tensor


def fp8_linear(x: Float[Tensor, "*batch K"], factor: Factor) -> Float[Tensor, "*batch O"]:
    """Return x Wᵀ in bf16."""
    return cast(Tensor, Fp8Linear.apply(x.to(torch.bfloat16), *factor))  # type: ignore[no-untyped-call]


def round_rows(x_NK: Float[Tensor, "N K"], factor_K: Float[Tensor, " K"] | None = None) -> Rounded:
    """Round x · factor to FP8 with a scale per row."""
    return (round_rows_triton if use_triton(x_NK) else round_rows_plain)(x_NK, factor_K)


def round_rows_plain(x_NK: Tensor, factor_K: Tensor | None) -> Rounded:
    """`round_rows` in plain PyTorch.

    The scale is the power of two that maps the largest magnitude of a row into [128, 256). Division by it is exact. The
    unused largest binade of e4m3 does not reduce the precision.
    """
    v_NK = x_NK.float() if factor_K is None else x_NK.float() * factor_K
    top_N1 = v_NK.abs().amax(1, keepdim=True)
    exponent_N1 = torch.where(top_N1 > 0, torch.frexp(top_N1).exponent - 8, -126).clamp_min(-126)
    scale_N1 = torch.ldexp(torch.ones_like(top_N1), exponent_N1)
    return Rounded((v_NK / scale_N1).to(E4M3), scale_N1)


def round_rows_triton(x_NK: Tensor, factor_K: Tensor | None) -> Rounded:
    """`round_rows` with the kernel. The Triton interpreter truncates FP8 conversions, so PyTorch converts there."""
    from jepamba.ops.fp8.triton_kernels import round_rows_kernel

    x_NK = x_NK.contiguous()
    N, K = x_NK.shape
    block = 1 << (K - 1).bit_length()
    R = max(1, TILE // block)
    codes_NK = torch.empty(N, K, dtype=E4M3 if x_NK.is_cuda else torch.float32, device=x_NK.device)
    scale_N1 = x_NK.new_empty(N, 1, dtype=torch.float32)
    with on_device(x_NK):
        round_rows_kernel[(-(-N // R),)](
            x_NK, scale_N1 if factor_K is None else factor_K, codes_NK, scale_N1, N, K,
            HAS_FACTOR=factor_K is not None, R=R, BLOCK=block, num_warps=max(4, num_warps(block)),
        )  # fmt: skip
    return Rounded(codes_NK.to(E4M3), scale_N1)


def product(a: Rounded, codes_OK: Tensor, scale_O: Tensor) -> Float[Tensor, "N O"]:
    """Return a Wᵀ in bf16 with W = scale · codes. On a CPU, multiply the same values in fp32."""
    if a.codes_NK.is_cuda:
        out_NO: Tensor = torch._scaled_mm(
            a.codes_NK,
            codes_OK.t(),
            scale_a=a.scale_N1,
            scale_b=scale_O.unsqueeze(0),
            out_dtype=torch.bfloat16,
            use_fast_accum=FAST_ACCUMULATION,
        )
        return out_NO
    exact_NO = a.codes_NK.float() @ codes_OK.float().t()
    return (exact_NO * a.scale_N1 * scale_O).to(torch.bfloat16)


class Fp8Linear(torch.autograd.Function):
    """x Wᵀ and dx = dy W in FP8, dW = dyᵀ x in bf16. dy is multiplied by the scales of W before rounding."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, w: Tensor, codes_OK: Tensor, codes_KO: Tensor, scale_O: Tensor, ones_K: Tensor
    ) -> Tensor:
        x_NK = x.flatten(0, -2).contiguous()
        ctx.save_for_backward(x_NK, codes_KO, scale_O, ones_K)
        ctx.dtype = w.dtype
        y_NO = product(round_rows(x_NK), codes_OK, scale_O)
        return y_NO.view(*x.shape[:-1], len(codes_OK))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Any) -> Any:
        x_NK, codes_KO, scale_O, ones_K = ctx.saved_tensors
        dy_NO = grads[0].flatten(0, -2).contiguous()
        dx = dw = None
        if ctx.needs_input_grad[0]:
            dx_NK = product(round_rows(dy_NO, scale_O), codes_KO, ones_K)
            dx = dx_NK.view(*grads[0].shape[:-1], len(codes_KO))
        if ctx.needs_input_grad[1]:
            dw = (dy_NO.t() @ x_NK).to(ctx.dtype)
        return dx, dw, None, None, None, None
