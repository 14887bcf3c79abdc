# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of fake quantization: they read each weight once from memory and write each quantized weight once.

Every operation is rounded as in PyTorch, so the results are equal to the bit. Adding and then subtracting a number
whose last bit is worth one step rounds to multiples of the step, half to even, and turns −0 into 0, as integers do.

Legend: R rows of C values, n of them in a program.
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
def _columns(n, start, R, C: tl.constexpr, BLOCK: tl.constexpr):
    """Return the offsets of BLOCK columns of the rows, and which are inside."""
    column = start + tl.arange(0, BLOCK)
    at_nc = (n.to(tl.int64) * C)[:, None] + column[None, :]
    return at_nc, (n < R)[:, None] & (column < C)[None, :]


@triton.jit
@no_type_check
def absmax_kernel(w, out, q_max, R, C: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """out = round(w / s) · s with the scale s = max |w| / q_max of each row, in BF16."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    # As integers, magnitudes have the order of their values, and NaN is the largest.
    absmax_n = tl.zeros((ROWS,), tl.int32)
    for start in tl.range(0, C, BLOCK):
        at_nc, inside_nc = _columns(n, start, R, C, BLOCK)
        w_nc = tl.load(w + at_nc, mask=inside_nc, other=0.0)
        absmax_n = tl.maximum(absmax_n, tl.max(w_nc.to(tl.int32, bitcast=True) & 0x7FFFFFFF, axis=1))
    scale_n = _round_to_bf16(tl.div_rn(absmax_n.to(tl.float32, bitcast=True), q_max))
    divisor_n = tl.where(scale_n > 0, scale_n, 1.0)
    # If a row is one block, the compiler merges this load with the first.
    for start in tl.range(0, C, BLOCK):
        at_nc, inside_nc = _columns(n, start, R, C, BLOCK)
        w_nc = tl.load(w + at_nc, mask=inside_nc, other=0.0)
        q_nc = tl.clamp(tl.div_rn(w_nc, divisor_n[:, None]), -q_max, q_max, propagate_nan=tl.PropagateNan.ALL)
        value_nc = (q_nc + SHIFT - SHIFT) * scale_n[:, None]
        tl.store(out + at_nc, value_nc.to(out.dtype.element_ty), mask=inside_nc)


@triton.jit
@no_type_check
def bf16_kernel(w, out, SIZE, BLOCK: tl.constexpr):
    """out = w rounded to BF16."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    value = _round_to_bf16(tl.load(w + at, mask=at < SIZE))
    tl.store(out + at, value.to(out.dtype.element_ty), mask=at < SIZE)
