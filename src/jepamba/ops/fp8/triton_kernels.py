# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels that round rows to FP8, separately or fused with the operation that computes the rows.

Legend: N rows (tokens), K columns (padded to BLOCK), R rows of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

from jepamba.ops.norms.triton_kernels import relu_of


@triton.jit
@no_type_check
def power_scale(max_abs):
    """Return (scale, 1 / scale), the power of two with 128 <= max_abs / scale < 256. Both are normal numbers."""
    biased = tl.maximum((max_abs.to(tl.int32, bitcast=True) >> 23) - 7, 1)
    return (biased << 23).to(tl.float32, bitcast=True), ((254 - biased) << 23).to(tl.float32, bitcast=True)


@triton.jit
@no_type_check
def round_rows_kernel(
    x, factor, codes, scale, N, K, HAS_FACTOR: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """codes·scale ≈ x·factor with one scale per row. The conversion rounds to nearest, ties to even."""
    rows, cols = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, BLOCK)
    inside = (rows < N)[:, None] & (cols < K)[None, :]
    at = rows.to(tl.int64)[:, None] * K + cols[None, :]
    v = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    if HAS_FACTOR:
        v *= tl.load(factor + cols, mask=cols < K, other=0.0)[None, :]
    power, inverse = power_scale(tl.max(tl.abs(v), axis=1))
    tl.store(scale + rows, power, mask=rows < N)
    tl.store(codes + at, (v * inverse[:, None]).to(codes.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def relu2_norm_round_kernel(u, codes, scale, D, eps, BLOCK: tl.constexpr):
    """codes·scale ≈ h = a·r with a = relu(u)², as in `relu2_norm_kernel`. h is not written."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = cols < D
    a = relu_of(tl.load(u + row * D + cols, mask=inside, other=0.0))
    a *= a
    h = (a * tl.rsqrt(tl.sum(a * a, axis=0) / D + eps)).to(u.dtype.element_ty).to(tl.float32)
    power, inverse = power_scale(tl.max(h, axis=0))
    tl.store(scale + row, power)
    tl.store(codes + row * D + cols, (h * inverse).to(codes.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def relu2_norm_gradient_round_kernel(u, dh, factor, h, du, codes, scale, D, eps, BLOCK: tl.constexpr):
    """Recompute h, and write du and codes·scale ≈ du·factor."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    at, inside = row * D + cols, cols < D
    relu = relu_of(tl.load(u + at, mask=inside, other=0.0))
    a = relu * relu
    r = tl.rsqrt(tl.sum(a * a, axis=0) / D + eps)
    tl.store(h + at, (a * r).to(h.dtype.element_ty), mask=inside)
    d = tl.load(dh + at, mask=inside, other=0.0).to(tl.float32)
    d = 2.0 * relu * r * (d - a * (r * r * tl.sum(d * a, axis=0) / D))
    tl.store(du + at, d.to(du.dtype.element_ty), mask=inside)
    v = d.to(du.dtype.element_ty).to(tl.float32) * tl.load(factor + cols, mask=inside, other=0.0)
    power, inverse = power_scale(tl.max(tl.abs(v), axis=0))
    tl.store(scale + row, power)
    tl.store(codes + at, (v * inverse).to(codes.dtype.element_ty), mask=inside)
