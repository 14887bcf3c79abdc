"""Fake quantization with Triton kernels."""

from __future__ import annotations

import triton
from jaxtyping import Float, Float32
from torch import Tensor

from jepamba.ops.dispatch import num_warps, on_device
from jepamba.ops.fake_quantize.triton_kernels import absmax_kernel, bf16_kernel

MAX_BLOCK = 4096
"""Maximum columns of a row in registers at once."""
VALUES = 1024
"""Minimum values of a program: short rows share a program."""


def fake_quantize_absmax(out_RC: Float[Tensor, "R C"], w_RC: Float32[Tensor, "R C"], q_max: int) -> None:
    """Write round(w / s) · s to `out_RC`, in its dtype, with a BF16 scale s = max |w| / `q_max` of each row.

    Both are contiguous.
    """
    R, C = w_RC.shape
    block = min(triton.next_power_of_2(C), MAX_BLOCK)
    rows = max(1, VALUES // block)
    with on_device(w_RC):
        absmax_kernel[(triton.cdiv(R, rows),)](
            w_RC, out_RC, float(q_max), R, C=C, ROWS=rows, BLOCK=block, num_warps=num_warps(rows * block)
        )


def fake_quantize_bf16(out: Float[Tensor, "..."], w: Float32[Tensor, "..."]) -> None:
    """Write `w`, rounded to BF16, to `out` in its dtype. Both are contiguous and have the same shape."""
    with on_device(w):
        bf16_kernel[(triton.cdiv(w.numel(), VALUES),)](w, out, w.numel(), BLOCK=VALUES)
