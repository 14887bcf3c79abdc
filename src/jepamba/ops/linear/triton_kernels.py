# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels between a matrix as it is cached and as its products read it: a scale for each row, padding below.

Legend: R rows, K columns (padded to BLOCK).
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def scale_and_pad_kernel(w, scale, wide, R, K, HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """wide = scale·w, and zeros in the rows below."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(w + row * K + cols, mask=(cols < K) & (row + 0 * cols < R), other=0.0).to(tl.float32)
    if HAS_SCALE:
        value *= tl.load(scale + row + 0 * cols, mask=row + 0 * cols < R, other=0.0).to(tl.float32)
    tl.store(wide + row * K + cols, value.to(wide.dtype.element_ty), mask=cols < K)


@triton.jit
@no_type_check
def scale_and_pad_gradient_kernel(w, scale, dwide, dw, dscale, K, BLOCK: tl.constexpr):
    """dw = scale·dwide; dscale = Σ dwide·w over a row."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = cols < K
    d = tl.load(dwide + row * K + cols, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(w + row * K + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(dw + row * K + cols, d * tl.load(scale + row).to(tl.float32), mask=inside)
    tl.store(dscale + row, tl.sum(d * value, axis=0))
