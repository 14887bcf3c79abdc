# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the squared ReLU with the RMS norm after it. See `triton_kernels` for how rows are processed.

Legend: N rows, D columns in C pieces of P columns, r = 1 / root mean square of a row.
"""

from typing import no_type_check

import triton
import triton.language as tl

from jepamba.ops.norms.triton_kernels import _inverse_rms, _shrinkage, load_row, store_row


@triton.jit
@no_type_check
def relu_of(value):
    """Return relu(value) in fp32. NaN stays NaN, as in PyTorch, so that a diverged model is detected."""
    return tl.maximum(value.to(tl.float32), 0.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
@no_type_check
def relu2_norm_kernel(u, out, eps, D: tl.constexpr, P: tl.constexpr):
    """out = a·r with a = relu(u)²."""
    row = tl.program_id(0)
    u_CP = load_row(u, row, D, D, P)
    squares_P = tl.zeros((P,), tl.float32)
    for i in tl.static_range(triton.cdiv(D, P)):
        relu = relu_of(u_CP[i])
        squares_P += relu * relu * (relu * relu)
    r = _inverse_rms(squares_P, D, eps)
    for i in tl.static_range(triton.cdiv(D, P)):
        relu = relu_of(u_CP[i])
        store_row(out, row, D, i, relu * relu * r, D, P)


@triton.jit
@no_type_check
def relu2_norm_gradient_kernel(u, dout, du, eps, D: tl.constexpr, P: tl.constexpr):
    """Write du."""
    row = tl.program_id(0)
    u_CP, dn_CP = load_row(u, row, D, D, P), load_row(dout, row, D, D, P)
    squares_P, products_P = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
    for i in tl.static_range(triton.cdiv(D, P)):
        relu = relu_of(u_CP[i])
        squares_P += relu * relu * (relu * relu)
        products_P += relu * relu * dn_CP[i].to(tl.float32)
    r = _inverse_rms(squares_P, D, eps)
    k = _shrinkage(products_P, r, D)
    for i in tl.static_range(triton.cdiv(D, P)):
        relu = relu_of(u_CP[i])
        da = r * (dn_CP[i].to(tl.float32) - k * relu * relu)
        store_row(du, row, D, i, 2.0 * relu * da, D, P)
