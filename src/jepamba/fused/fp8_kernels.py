# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""The Triton kernel that rounds rows to FP8: read once, written once.

Legend: N rows (tokens), K columns (padded to BLOCK), R rows of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def power_scale(top):
    """(scale, its inverse), the power of two with 128 <= top / scale < 256; both are normal numbers for any `top`."""
    biased = tl.maximum((top.to(tl.int32, bitcast=True) >> 23) - 7, 1)
    return (biased << 23).to(tl.float32, bitcast=True), ((254 - biased) << 23).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def round_rows_kernel(
    x, factor, codes, scale, N, K, HAS_FACTOR: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """codes·scale ≈ x·factor, one scale a row. The conversion to codes rounds to the nearest, ties to even."""
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BLOCK)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = rows.to(tl.int64)[:, None] * K + cols[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        v *= tl.load(factor + cols, mask=cols < K, other=0.0)[None, :]
    power, inverse = power_scale(tl.max(tl.abs(v), axis=1))
    tl.store(scale + rows, power, mask=rows < N)
    tl.store(codes + at, (v * inverse[:, None]).to(codes.dtype.element_ty), mask=inside)
