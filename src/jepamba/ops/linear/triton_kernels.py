# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels that scale the rows of a weight matrix and pad it with rows of zeros.

Legend: R rows, K columns (padded to BLOCK).
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def scale_and_pad_kernel(w, scale, padded, R, K, HAS_SCALE: tl.constexpr, BLOCK: tl.constexpr):
    """padded = scale·w, then rows of zeros."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(w + row * K + cols, mask=(cols < K) & (row + 0 * cols < R), other=0.0).to(tl.float32)
    if HAS_SCALE:
        value *= tl.load(scale + row + 0 * cols, mask=row + 0 * cols < R, other=0.0).to(tl.float32)
    tl.store(padded + row * K + cols, value.to(padded.dtype.element_ty), mask=cols < K)


@triton.jit
@no_type_check
def scale_and_pad_gradient_kernel(w, scale, dpadded, dw, dscale, K, BLOCK: tl.constexpr):
    """dw = scale·dpadded, dscale = Σ dpadded·w over a row."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = cols < K
    d = tl.load(dpadded + row * K + cols, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(w + row * K + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(dw + row * K + cols, d * tl.load(scale + row).to(tl.float32), mask=inside)
    tl.store(dscale + row, tl.sum(d * value, axis=0))
