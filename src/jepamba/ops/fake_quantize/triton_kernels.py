# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of fake quantization: they read each weight once from memory and write each quantized weight once.

Every operation is rounded as in PyTorch, so the results are equal to the bit. Adding and then subtracting a number
whose last bit is worth one step rounds to multiples of the step, half to even, and turns −0 into 0, as integers do.

Legend: R rows of C values, each row with G groups of K columns; N = R·G groups, n of them in a program.
"""

from typing import no_type_check

import triton
import triton.language as tl

SHIFT = tl.constexpr(1.5 * 2**23)
"""fp32 values near it are integers, on both sides."""


@triton.jit
@no_type_check
def _round_to_bf16(x):
    """Return x rounded to BF16, half to even, as fp32. A cast would be truncated by Triton's interpreter."""
    bits = x.to(tl.int32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) & -0x10000
    return tl.where(x == x, rounded.to(tl.float32, bitcast=True), x)


@triton.jit
@no_type_check
def _columns(n, start, N, C: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    """Return the offsets of BLOCK columns of the groups, and which are inside: a row's last group can be shorter."""
    G: tl.constexpr = tl.cdiv(C, K)
    k = start + tl.arange(0, BLOCK)
    column_nk = (n % G * K)[:, None] + k[None, :]
    at_nk = ((n // G).to(tl.int64) * C)[:, None] + column_nk
    return at_nk, (n < N)[:, None] & (k < K)[None, :] & (column_nk < C)


@triton.jit
@no_type_check
def absmax_kernel(
    w, out, q_max, N,
    C: tl.constexpr, K: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out = round(w / s) · s with the scale s = max |w| / q_max of each group, in BF16."""
    n = tl.program_id(0) * GROUPS + tl.arange(0, GROUPS)
    # As integers, magnitudes have the order of their values, and NaN is the largest.
    absmax_n = tl.zeros((GROUPS,), tl.int32)
    for start in tl.range(0, K, BLOCK):
        at_nk, inside_nk = _columns(n, start, N, C, K, BLOCK)
        w_nk = tl.load(w + at_nk, mask=inside_nk, other=0.0)
        absmax_n = tl.maximum(absmax_n, tl.max(w_nk.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1))
    scale_n = _round_to_bf16(tl.div_rn(absmax_n.to(tl.float32, bitcast=True), q_max))
    divisor_n = tl.where(scale_n > 0, scale_n, 1.0)
    # If a group is one block, the compiler merges this load with the first.
    for start in tl.range(0, K, BLOCK):
        at_nk, inside_nk = _columns(n, start, N, C, K, BLOCK)
        w_nk = tl.load(w + at_nk, mask=inside_nk, other=0.0)
        q_nk = tl.clamp(tl.div_rn(w_nk, divisor_n[:, None]), -q_max, q_max, propagate_nan=tl.PropagateNan.ALL)
        value_nk = (q_nk + SHIFT - SHIFT) * scale_n[:, None]
        tl.store(out + at_nk, value_nk.to(out.dtype.element_ty), mask=inside_nk)


@triton.jit
@no_type_check
def bf16_kernel(w, out, SIZE, BLOCK: tl.constexpr):
    """out = w rounded to BF16."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = _round_to_bf16(tl.load(w + at, mask=at < SIZE))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < SIZE)
