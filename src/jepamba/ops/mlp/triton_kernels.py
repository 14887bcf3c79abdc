# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
# ruff: noqa: SIM108 (a constexpr chooses the branch that is compiled)
"""Triton kernels of the MLP with squared ReLU: two products with row-wise work in their epilogues, and two row kernels.

With a = relu(up x)², n = r·a and r = rsqrt(mean a² + ε), the scale r of a row goes past the product with `down`:
out = residual + r·p with p = down a. So the forward pass writes a, and never n. With e = r·dout,

    dn = downᵀ dout,   Σ a·dn over the hidden values = Σ p·dout over the outputs,
    da = r·dn − c·a = downᵀ e − c·a,   c = r³/M · Σ p·dout,   d(up x) = 2·√a·da,   d(down) = eᵀ a.

So the sum of the norm's gradient is known before the product with downᵀ, and dn is never written either.

A program of the two products computes several tiles of R rows and C columns. The tiles of the same rows follow one
another, because the matrix stays in the L2 cache and its inputs then do too. Reads past the end of a tensor give 0.

Legend: N tokens, D model width, M hidden width, S tiles of C columns in a row, K depth of a step of a product,
H columns of half a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

from jepamba.ops.norms.relu2_kernels import relu_of
from jepamba.ops.norms.triton_kernels import load_row, store_row


@triton.jit
@no_type_check
def _product(
    x, w, row, column, D: tl.constexpr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr, STAGES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):  # fmt: skip
    """Return the tile (R, C) of x w in fp32, or of x wᵀ if `TRANSPOSED`. x and w are descriptors."""
    product_RC = tl.zeros((R, C), tl.float32)
    for depth in tl.range(0, D, K, num_stages=STAGES):
        x_RK = x.load([row, depth])
        if TRANSPOSED:
            w_KC = w.load([column, depth]).T
        else:
            w_KC = w.load([depth, column])
        product_RC = tl.dot(x_RK, w_KC, product_RC, input_precision="ieee")
    return product_RC


@triton.jit
@no_type_check
def _halves(product_RC, R: tl.constexpr, C: tl.constexpr):
    """Return both halves (R, H) of a tile. Stored one after the other, they need half as much shared memory."""
    return tl.split(tl.permute(tl.reshape(product_RC, (R, 2, C // 2)), (0, 2, 1)))


@triton.jit
@no_type_check
def up_kernel(
    x, up, a, squares, N, D: tl.constexpr, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    PROGRAMS: tl.constexpr, STAGES: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """a = relu(x upᵀ)², squares (N, S) = Σ a² of each tile. x, up and a are descriptors."""
    S: tl.constexpr = (M + C - 1) // C
    tiles = tl.cdiv(N, R) * S
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True, warp_specialize=SPECIALIZE):
        row, column = tile // S * R, tile % S * C
        squares_R = tl.zeros((R,), tl.float32)
        halves = _halves(_product(x, up, row, column, D, R, C, K, STAGES, TRANSPOSED=True), R, C)
        for i in tl.static_range(2):
            relu_RH = relu_of(halves[i])
            a_RH = (relu_RH * relu_RH).to(a.dtype)
            a.store([row, column + i * (C // 2)], a_RH)
            rounded_RH = a_RH.to(tl.float32)
            squares_R += tl.sum(rounded_RH * rounded_RH, axis=1)
        rows = row + tl.arange(0, R)
        tl.store(squares + rows.to(tl.int64) * S + tile % S, squares_R, mask=rows < N)


@triton.jit
@no_type_check
def down_gradient_kernel(
    e, down, a, c, du, N, D: tl.constexpr, M: tl.constexpr, R: tl.constexpr, C: tl.constexpr, K: tl.constexpr,
    PROGRAMS: tl.constexpr, STAGES: tl.constexpr, SPECIALIZE: tl.constexpr,
):  # fmt: skip
    """du = 2·√a·(e down − c·a). e, down, a and du are descriptors, c (N,) is fp32."""
    S: tl.constexpr = (M + C - 1) // C
    tiles = tl.cdiv(N, R) * S
    for tile in tl.range(tl.program_id(0), tiles, PROGRAMS, flatten=True, warp_specialize=SPECIALIZE):
        row, column = tile // S * R, tile % S * C
        halves = _halves(_product(e, down, row, column, D, R, C, K, STAGES, TRANSPOSED=False), R, C)
        rows = row + tl.arange(0, R)
        c_R = tl.load(c + rows, mask=rows < N, other=0.0)
        for i in tl.static_range(2):
            at = column + i * (C // 2)
            a_RH = a.load([row, at]).to(tl.float32)
            du_RH = 2.0 * tl.sqrt(a_RH) * (halves[i] - c_R[:, None] * a_RH)
            du.store([row, at], du_RH.to(du.dtype))


@triton.jit
@no_type_check
def add_scaled_kernel(
    residual, p, squares, out, r, eps, D: tl.constexpr, M: tl.constexpr, S: tl.constexpr, SPAN: tl.constexpr,
    P: tl.constexpr,
):  # fmt: skip
    """r = rsqrt(Σ squares / M + ε), out = residual + r·p. SPAN is a power of two of at least S."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, SPAN)
    total = tl.sum(tl.load(squares + row * S + at, mask=at < S, other=0.0), axis=0)
    scale = tl.rsqrt(total / M + eps)
    tl.store(r + row, scale)
    residual_CP, p_CP = load_row(residual, row, D, D, P), load_row(p, row, D, D, P)
    for i in tl.static_range(triton.cdiv(D, P)):
        # As with separate kernels, the branch is rounded before it is added.
        branch = (p_CP[i].to(tl.float32) * scale).to(p.dtype.element_ty)
        store_row(out, row, D, i, residual_CP[i].to(tl.float32) + branch.to(tl.float32), D, P)


@triton.jit
@no_type_check
def scale_gradient_kernel(dout, p, r, e, c, D: tl.constexpr, M: tl.constexpr, P: tl.constexpr):
    """e = r·dout, c = r³/M · Σ p·dout."""
    row = tl.program_id(0).to(tl.int64)
    scale = tl.load(r + row)
    dout_CP, p_CP = load_row(dout, row, D, D, P), load_row(p, row, D, D, P)
    products_P = tl.zeros((P,), tl.float32)
    for i in tl.static_range(triton.cdiv(D, P)):
        d = dout_CP[i].to(tl.float32)
        products_P += d * p_CP[i].to(tl.float32)
        store_row(e, row, D, i, d * scale, D, P)
    tl.store(c + row, scale * scale * scale / M * tl.sum(products_P, axis=0))
