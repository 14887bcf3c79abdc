# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the row-wise operations in `norms`: each reads every tensor once and writes every result once.

A row is one token. Forward kernels take one row a program; backward kernels take many in turn, so that the gradients
of per-channel weights are summed on chip and leave as one part per program (summed afterwards: no atomics, the same
inputs give the same bits). Arithmetic is fp32 whatever the tensors' dtype.

Legend: N rows, D columns (padded to BLOCK), r one over the root mean square of a row.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _load(tensor, row, stride, cols, inside):
    return tl.load(tensor + row.to(tl.int64) * stride + cols, mask=inside, other=0.0).to(tl.float32)


@triton.jit
@no_type_check
def _store(tensor, row, stride, cols, inside, value):
    tl.store(tensor + row.to(tl.int64) * stride + cols, value.to(tensor.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def _rounded(value, like):
    """`value` as `like` will hold it: what a later reader sees is what is normalised here."""
    return value.to(like.dtype.element_ty).to(tl.float32)


@triton.jit
@no_type_check
def _norm_gradient(dn, s, D, eps):
    """Gradient of s·r(s) with respect to s."""
    r = tl.rsqrt(tl.sum(s * s, axis=0) / D + eps)
    return r * (dn - s * (r * r * tl.sum(dn * s, axis=0) / D))


@triton.jit
@no_type_check
def add_norm_kernel(x, branch, total, normed, D, eps, HAS_BRANCH: tl.constexpr, BLOCK: tl.constexpr):
    """total = x + branch (not written without a branch: it is x), normed = total·r."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    s = _load(x, row, D, cols, inside)
    if HAS_BRANCH:
        s = _rounded(s + _load(branch, row, D, cols, inside), total)
        _store(total, row, D, cols, inside, s)
    _store(normed, row, D, cols, inside, s * tl.rsqrt(tl.sum(s * s, axis=0) / D + eps))


@triton.jit
@no_type_check
def add_norm_gradient_kernel(total, dtotal, dnormed, dx, D, eps, HAS_DTOTAL: tl.constexpr, BLOCK: tl.constexpr):
    """dx, which is the branch's gradient too."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    d = _norm_gradient(_load(dnormed, row, D, cols, inside), _load(total, row, D, cols, inside), D, eps)
    if HAS_DTOTAL:
        d += _load(dtotal, row, D, cols, inside)
    _store(dx, row, D, cols, inside, d)


@triton.jit
@no_type_check
def mix_norm_kernel(
    x, x0, skip, mix, weight, mixed, normed, D, eps, HAS_SKIP: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """mixed = mix₀·(x + weight·skip) + mix₁·x0, normed = mixed·r."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    v = _load(x, row, D, cols, inside)
    if HAS_SKIP:
        v += tl.load(weight + cols, mask=inside, other=0.0) * _load(skip, row, D, cols, inside)
    m0, m1 = tl.load(mix + cols, mask=inside, other=0.0), tl.load(mix + D + cols, mask=inside, other=0.0)
    s = _rounded(m0 * v + m1 * _load(x0, row, D, cols, inside), mixed)
    _store(mixed, row, D, cols, inside, s)
    _store(normed, row, D, cols, inside, s * tl.rsqrt(tl.sum(s * s, axis=0) / D + eps))


@triton.jit
@no_type_check
def mix_norm_gradient_kernel(
    x, x0, skip, mix, weight, mixed, dmixed, dnormed, dx0_after, dx_after, dx, dx0, dskip, parts,
    N, D, eps, HAS_SKIP: tl.constexpr, HAS_DMIXED: tl.constexpr, HAS_AFTER: tl.constexpr,
    HAS_X_AFTER: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """dx and dx0 (with what others left for them), dskip, and parts (programs, 3, D): of dmix₀, dmix₁ and dweight."""
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    m0, m1 = tl.load(mix + cols, mask=inside, other=0.0), tl.load(mix + D + cols, mask=inside, other=0.0)
    w = m0
    if HAS_SKIP:
        w = tl.load(weight + cols, mask=inside, other=0.0)
    dm0, dm1, dw = tl.zeros_like(m0), tl.zeros_like(m0), tl.zeros_like(m0)
    for row in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        d = _norm_gradient(_load(dnormed, row, D, cols, inside), _load(mixed, row, D, cols, inside), D, eps)
        if HAS_DMIXED:
            d += _load(dmixed, row, D, cols, inside)
        v = _load(x, row, D, cols, inside)
        dv = m0 * d
        if HAS_SKIP:
            s = _load(skip, row, D, cols, inside)
            v += w * s
            dw += dv * s
            _store(dskip, row, D, cols, inside, w * dv)
        dm0 += d * v
        dm1 += d * _load(x0, row, D, cols, inside)
        if HAS_X_AFTER:
            dv += _load(dx_after, row, D, cols, inside)
        _store(dx, row, D, cols, inside, dv)
        d0 = m1 * d
        if HAS_AFTER:
            d0 += _load(dx0_after, row, D, cols, inside)
        _store(dx0, row, D, cols, inside, d0)
    part = parts + tl.program_id(0) * 3 * D + cols
    tl.store(part, dm0, mask=inside)
    tl.store(part + D, dm1, mask=inside)
    tl.store(part + 2 * D, dw, mask=inside)


@triton.jit
@no_type_check
def gated_norm_kernel(y, z, weight, out, z_stride, D, eps, BLOCK: tl.constexpr):
    """out = weight·v·r with v = y·silu(z)."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    z_D = _load(z, row, z_stride, cols, inside)
    v = _load(y, row, D, cols, inside) * z_D * tl.sigmoid(z_D)
    w = tl.load(weight + cols, mask=inside, other=0.0)
    _store(out, row, D, cols, inside, w * v * tl.rsqrt(tl.sum(v * v, axis=0) / D + eps))


@triton.jit
@no_type_check
def gated_norm_gradient_kernel(
    y, z, weight, dout, dy, dz, parts, z_stride, dz_stride, N, D, eps, BLOCK: tl.constexpr
):  # fmt: skip
    """dy, dz, and parts (programs, D) of dweight."""
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    w = tl.load(weight + cols, mask=inside, other=0.0)
    dw = tl.zeros_like(w)
    for row in range(tl.program_id(0), N, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        y_D, z_D = _load(y, row, D, cols, inside), _load(z, row, z_stride, cols, inside)
        d = _load(dout, row, D, cols, inside)
        sigmoid = tl.sigmoid(z_D)
        silu = z_D * sigmoid
        v = y_D * silu
        r = tl.rsqrt(tl.sum(v * v, axis=0) / D + eps)
        dw += d * v * r
        d *= w
        dv = r * (d - v * (r * r * tl.sum(d * v, axis=0) / D))
        _store(dy, row, D, cols, inside, dv * silu)
        _store(dz, row, dz_stride, cols, inside, dv * y_D * (sigmoid + silu * (1.0 - sigmoid)))
    tl.store(parts + tl.program_id(0) * D + cols, dw, mask=inside)


@triton.jit
@no_type_check
def relu2_norm_kernel(u, out, D, eps, BLOCK: tl.constexpr):
    """out = a·r with a = relu(u)²."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    a = tl.maximum(_load(u, row, D, cols, inside), 0.0)
    a *= a
    _store(out, row, D, cols, inside, a * tl.rsqrt(tl.sum(a * a, axis=0) / D + eps))


@triton.jit
@no_type_check
def relu2_norm_gradient_kernel(u, dout, du, D, eps, BLOCK: tl.constexpr):
    """du."""
    row, cols = tl.program_id(0), tl.arange(0, BLOCK)
    inside = cols < D
    relu = tl.maximum(_load(u, row, D, cols, inside), 0.0)
    da = _norm_gradient(_load(dout, row, D, cols, inside), relu * relu, D, eps)
    _store(du, row, D, cols, inside, 2.0 * relu * da)
