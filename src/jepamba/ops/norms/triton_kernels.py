# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
# ruff: noqa: RUF005, SIM108 (Triton joins tuples with +)
"""Triton kernels of the norms. Each kernel reads each input once and writes each output once.

A row is one token. One or a few warps keep it in registers as several pieces, because D is seldom a power of two and a
single padded block would leave a third of the threads idle. Few warps per row keep many rows in flight, which hides the
memory latency. A forward program processes one row. A backward program with per-channel weights processes many rows and
writes one partial sum of the weight gradients. The partial sums are added afterwards without atomics, so results are
deterministic. Arithmetic is fp32 for all dtypes.

Legend: N rows, D columns in C pieces of P columns, r = 1 / root mean square of a row.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def load_row(tensor, row, stride, D: tl.constexpr, P: tl.constexpr):
    """Load a row as a tuple of pieces, in its own dtype, because bf16 needs half the registers of fp32."""
    pieces = ()
    for i in tl.static_range(triton.cdiv(D, P)):
        cols = i * P + tl.arange(0, P)
        at = tensor + tl.cast(row, tl.int64) * stride + cols
        # A piece that is entirely inside the row needs no mask.
        if (i + 1) * P <= D:
            piece = tl.load(at)
        else:
            piece = tl.load(at, mask=cols < D, other=0.0)
        pieces = pieces + (piece,)
    return pieces


@triton.jit
@no_type_check
def store_row(tensor, row, stride, i: tl.constexpr, value, D: tl.constexpr, P: tl.constexpr):
    """Store piece `i` of a row."""
    cols = i * P + tl.arange(0, P)
    at = tensor + tl.cast(row, tl.int64) * stride + cols
    if (i + 1) * P <= D:
        tl.store(at, value.to(tensor.dtype.element_ty))
    else:
        tl.store(at, value.to(tensor.dtype.element_ty), mask=cols < D)


@triton.jit
@no_type_check
def _zeros(D: tl.constexpr, P: tl.constexpr):
    pieces = ()
    for _ in tl.static_range(triton.cdiv(D, P)):
        pieces = pieces + (tl.zeros((P,), tl.float32),)
    return pieces


@triton.jit
@no_type_check
def _inverse_rms(squares_P, D: tl.constexpr, eps):
    """Return r from the squares, summed over pieces."""
    return tl.rsqrt(tl.sum(squares_P, axis=0) / D + eps)


@triton.jit
@no_type_check
def _shrinkage(products_P, r, D: tl.constexpr):
    """Return k in the gradient r·(dn − k·s) of s·r(s) with respect to s, from dn·s summed over pieces."""
    return r * r * tl.sum(products_P, axis=0) / D


@triton.jit
@no_type_check
def add_norm_kernel(x, branch, total, normed, eps, D: tl.constexpr, P: tl.constexpr, HAS_BRANCH: tl.constexpr):
    """total = x + branch, normed = total·r. Without a branch, total is x and is not written."""
    row = tl.program_id(0)
    s_CP = load_row(x, row, D, D, P)
    squares_P = tl.zeros((P,), tl.float32)
    if HAS_BRANCH:
        branch_CP = load_row(branch, row, D, D, P)
        sums = ()
        for i in tl.static_range(triton.cdiv(D, P)):
            s = (s_CP[i].to(tl.float32) + branch_CP[i].to(tl.float32)).to(total.dtype.element_ty)
            store_row(total, row, D, i, s, D, P)
            sums = sums + (s,)
        s_CP = sums
    for i in tl.static_range(triton.cdiv(D, P)):
        s = s_CP[i].to(tl.float32)
        squares_P += s * s
    r = _inverse_rms(squares_P, D, eps)
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(normed, row, D, i, s_CP[i].to(tl.float32) * r, D, P)


@triton.jit
@no_type_check
def add_norm_gradient_kernel(
    total, dtotal, dnormed, dx, eps, D: tl.constexpr, P: tl.constexpr, HAS_DTOTAL: tl.constexpr
):  # fmt: skip
    """Write dx, which is also the gradient of the branch."""
    row = tl.program_id(0)
    s_CP, dn_CP = load_row(total, row, D, D, P), load_row(dnormed, row, D, D, P)
    dtotal_CP = s_CP
    if HAS_DTOTAL:
        dtotal_CP = load_row(dtotal, row, D, D, P)
    squares_P, products_P = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
    for i in tl.static_range(triton.cdiv(D, P)):
        s = s_CP[i].to(tl.float32)
        squares_P += s * s
        products_P += s * dn_CP[i].to(tl.float32)
    r = _inverse_rms(squares_P, D, eps)
    k = _shrinkage(products_P, r, D)
    for i in tl.static_range(triton.cdiv(D, P)):
        d = r * (dn_CP[i].to(tl.float32) - k * s_CP[i].to(tl.float32))
        if HAS_DTOTAL:
            d += dtotal_CP[i].to(tl.float32)
        store_row(dx, row, D, i, d, D, P)


@triton.jit
@no_type_check
def _mixed(x, skip, x0, w, m0, m1, HAS_SKIP: tl.constexpr):
    """Return mix₀·(x + weight·skip) + mix₁·x0 of a piece, rounded to the dtype of x like the stored output."""
    v = x.to(tl.float32)
    if HAS_SKIP:
        v += w * skip.to(tl.float32)
    return (m0 * v + m1 * x0.to(tl.float32)).to(x.dtype).to(tl.float32)


@triton.jit
@no_type_check
def mix_norm_kernel(
    x, x0, skip, mix, weight, mixed, normed, eps, D: tl.constexpr, P: tl.constexpr, HAS_SKIP: tl.constexpr
):  # fmt: skip
    """mixed = mix₀·(x + weight·skip) + mix₁·x0, normed = mixed·r."""
    row = tl.program_id(0)
    x_CP, x0_CP = load_row(x, row, D, D, P), load_row(x0, row, D, D, P)
    m0_CP, m1_CP = load_row(mix, 0, D, D, P), load_row(mix, 1, D, D, P)
    skip_CP, w_CP = x_CP, m0_CP
    if HAS_SKIP:
        skip_CP, w_CP = load_row(skip, row, D, D, P), load_row(weight, 0, D, D, P)
    squares_P = tl.zeros((P,), tl.float32)
    mixed_CP = ()
    for i in tl.static_range(triton.cdiv(D, P)):
        s = _mixed(x_CP[i], skip_CP[i], x0_CP[i], w_CP[i], m0_CP[i], m1_CP[i], HAS_SKIP)
        store_row(mixed, row, D, i, s, D, P)
        squares_P += s * s
        mixed_CP = mixed_CP + (s,)
    r = _inverse_rms(squares_P, D, eps)
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(normed, row, D, i, mixed_CP[i] * r, D, P)


@triton.jit
@no_type_check
def mix_norm_gradient_kernel(
    x, x0, skip, mix, weight, dmixed, dnormed, dx0_later, dx_later, dx, dx0, dskip, partials, N, eps,
    D: tl.constexpr, P: tl.constexpr, HAS_SKIP: tl.constexpr, HAS_DMIXED: tl.constexpr, HAS_DX0_LATER: tl.constexpr,
    HAS_DX_LATER: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write dx and dx0 (plus the gradients from later layers), dskip, and partial sums of dmix₀, dmix₁ and dweight.

    `partials` is (programs, 3, D). `mixed` is recomputed, which is faster than reading it.
    """
    m0_CP, m1_CP = load_row(mix, 0, D, D, P), load_row(mix, 1, D, D, P)
    w_CP = m0_CP
    if HAS_SKIP:
        w_CP = load_row(weight, 0, D, D, P)
    dm0_CP, dm1_CP, dw_CP = _zeros(D, P), _zeros(D, P), _zeros(D, P)
    for row in tl.range(tl.program_id(0), N, tl.num_programs(0), num_stages=STAGES):
        x_CP, x0_CP, dn_CP = load_row(x, row, D, D, P), load_row(x0, row, D, D, P), load_row(dnormed, row, D, D, P)
        skip_CP, dmixed_CP, dx0_later_CP, dx_later_CP = x_CP, x_CP, x_CP, x_CP
        if HAS_SKIP:
            skip_CP = load_row(skip, row, D, D, P)
        if HAS_DMIXED:
            dmixed_CP = load_row(dmixed, row, D, D, P)
        if HAS_DX0_LATER:
            dx0_later_CP = load_row(dx0_later, row, D, D, P)
        if HAS_DX_LATER:
            dx_later_CP = load_row(dx_later, row, D, D, P)
        squares_P, products_P = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
        mixed_CP = ()
        for i in tl.static_range(triton.cdiv(D, P)):
            s = _mixed(x_CP[i], skip_CP[i], x0_CP[i], w_CP[i], m0_CP[i], m1_CP[i], HAS_SKIP)
            squares_P += s * s
            products_P += s * dn_CP[i].to(tl.float32)
            mixed_CP = mixed_CP + (s,)
        r = _inverse_rms(squares_P, D, eps)
        k = _shrinkage(products_P, r, D)
        dm0, dm1, dw = (), (), ()
        for i in tl.static_range(triton.cdiv(D, P)):
            d = r * (dn_CP[i].to(tl.float32) - k * mixed_CP[i])
            if HAS_DMIXED:
                d += dmixed_CP[i].to(tl.float32)
            v = x_CP[i].to(tl.float32)
            dv = m0_CP[i] * d
            if HAS_SKIP:
                skipped = skip_CP[i].to(tl.float32)
                v += w_CP[i] * skipped
                dw = dw + (dw_CP[i] + dv * skipped,)
                store_row(dskip, row, D, i, w_CP[i] * dv, D, P)
            dm0 = dm0 + (dm0_CP[i] + d * v,)
            dm1 = dm1 + (dm1_CP[i] + d * x0_CP[i].to(tl.float32),)
            if HAS_DX_LATER:
                dv += dx_later_CP[i].to(tl.float32)
            store_row(dx, row, D, i, dv, D, P)
            d0 = m1_CP[i] * d
            if HAS_DX0_LATER:
                d0 += dx0_later_CP[i].to(tl.float32)
            store_row(dx0, row, D, i, d0, D, P)
        dm0_CP, dm1_CP = dm0, dm1
        if HAS_SKIP:
            dw_CP = dw
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(partials, 3 * tl.program_id(0), D, i, dm0_CP[i], D, P)
        store_row(partials, 3 * tl.program_id(0) + 1, D, i, dm1_CP[i], D, P)
        store_row(partials, 3 * tl.program_id(0) + 2, D, i, dw_CP[i], D, P)


@triton.jit
@no_type_check
def gated_norm_kernel(y, z, weight, out, z_stride, eps, D: tl.constexpr, P: tl.constexpr):
    """out = weight·v·r with v = y·silu(z)."""
    row = tl.program_id(0)
    y_CP, z_CP, w_CP = load_row(y, row, D, D, P), load_row(z, row, z_stride, D, P), load_row(weight, 0, D, D, P)
    squares_P = tl.zeros((P,), tl.float32)
    v_CP = ()
    for i in tl.static_range(triton.cdiv(D, P)):
        z_P = z_CP[i].to(tl.float32)
        v = y_CP[i].to(tl.float32) * z_P * tl.sigmoid(z_P)
        squares_P += v * v
        v_CP = v_CP + (v,)
    r = _inverse_rms(squares_P, D, eps)
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(out, row, D, i, w_CP[i] * v_CP[i] * r, D, P)


@triton.jit
@no_type_check
def gated_norm_gradient_kernel(
    y, z, weight, dout, dy, dz, partials, z_stride, dz_stride, N, eps, D: tl.constexpr, P: tl.constexpr,
    STAGES: tl.constexpr,
):  # fmt: skip
    """Write dy, dz, and `partials` (programs, D) of dweight."""
    w_CP, dw_CP = load_row(weight, 0, D, D, P), _zeros(D, P)
    for row in tl.range(tl.program_id(0), N, tl.num_programs(0), num_stages=STAGES):
        y_CP, z_CP, d_CP = load_row(y, row, D, D, P), load_row(z, row, z_stride, D, P), load_row(dout, row, D, D, P)
        squares_P, products_P = tl.zeros((P,), tl.float32), tl.zeros((P,), tl.float32)
        sigmoid_CP = ()
        for i in tl.static_range(triton.cdiv(D, P)):
            z_P = z_CP[i].to(tl.float32)
            sigmoid = tl.sigmoid(z_P)
            v = y_CP[i].to(tl.float32) * z_P * sigmoid
            squares_P += v * v
            products_P += d_CP[i].to(tl.float32) * w_CP[i] * v
            sigmoid_CP = sigmoid_CP + (sigmoid,)
        r = _inverse_rms(squares_P, D, eps)
        k = _shrinkage(products_P, r, D)
        dw = ()
        for i in tl.static_range(triton.cdiv(D, P)):
            y_P, d = y_CP[i].to(tl.float32), d_CP[i].to(tl.float32)
            sigmoid = sigmoid_CP[i]
            silu = z_CP[i].to(tl.float32) * sigmoid
            v = y_P * silu
            dw = dw + (dw_CP[i] + d * v * r,)
            dv = r * (d * w_CP[i] - k * v)
            store_row(dy, row, D, i, dv * silu, D, P)
            store_row(dz, row, dz_stride, i, dv * y_P * (sigmoid + silu * (1.0 - sigmoid)), D, P)
        dw_CP = dw
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(partials, tl.program_id(0), D, i, dw_CP[i], D, P)
