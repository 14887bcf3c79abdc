# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the latent predictor: bias with GELU, and the error against a shifted target.

Arithmetic is fp32 for all dtypes. Each program writes one partial sum, without atomics.

Legend: N rows (tokens), M columns, r rows of a tile, k the shift in tokens.
"""

from typing import no_type_check

import triton
import triton.language as tl

INV_SQRT_TAU = tl.constexpr(0.3989422804014327)


@triton.jit
@no_type_check
def _normal_cdf_and_density(v):
    """Return the CDF Φ(v) and the density φ(v) of N(0, 1), with an error of Φ below 7.5e-8.

    1 − Φ(v) = φ(v)·t·p(t) with t = 1/(1 + 0.2316419 v) for v ≥ 0 (Abramowitz & Stegun 1964, 26.2.17). This needs a
    quarter fewer instructions than the error function, which would limit the speed of these kernels.
    """
    density = INV_SQRT_TAU * tl.exp(-0.5 * v * v)
    t = 1.0 / (1.0 + 0.2316419 * tl.abs(v))
    p = 0.319381530 + t * (-0.356563782 + t * (1.781477937 + t * (-1.821255978 + t * 1.330274429)))
    tail = density * t * p
    return tl.where(v < 0.0, tail, 1.0 - tail), density


@triton.jit
@no_type_check
def bias_gelu_kernel(u, bias, out, N, M, R: tl.constexpr, BLOCK: tl.constexpr):
    """out = gelu(u + bias) with the exact GELU, v·Φ(v)."""
    # Adjacent programs process adjacent columns, which are adjacent in memory.
    across = tl.cdiv(M, BLOCK)
    rows = tl.program_id(0) // across * R + tl.arange(0, R)
    cols = tl.program_id(0) % across * BLOCK + tl.arange(0, BLOCK)
    inside = (rows < N)[:, None] & (cols < M)[None, :]
    at = rows.to(tl.int64)[:, None] * M + cols[None, :]
    v = tl.load(u + at, mask=inside, other=0.0).to(tl.float32)
    v += tl.load(bias + cols, mask=cols < M, other=0.0).to(tl.float32)[None, :]
    below, _ = _normal_cdf_and_density(v)
    tl.store(out + at, (v * below).to(out.dtype.element_ty), mask=inside)


@triton.jit
@no_type_check
def bias_gelu_gradient_kernel(u, bias, dout, du, partials, N, M, BLOCK: tl.constexpr):
    """Write du, and `partials` (programs, M) of dbias."""
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < M
    bias_C = tl.load(bias + cols, mask=inside, other=0.0).to(tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(1), N, tl.num_programs(1)):
        at = tl.cast(row, tl.int64) * M + cols
        v = tl.load(u + at, mask=inside, other=0.0).to(tl.float32) + bias_C
        below, density = _normal_cdf_and_density(v)
        d = tl.load(dout + at, mask=inside, other=0.0).to(tl.float32) * (below + v * density)
        sums += d
        tl.store(du + at, d.to(du.dtype.element_ty), mask=inside)
    tl.store(partials + tl.program_id(1).to(tl.int64) * M + cols, sums, mask=inside)


@triton.jit
@no_type_check
def shifted_error_kernel(prediction, target, weight, partials, N, D, shift, BLOCK: tl.constexpr):
    """Write `partials` (programs,) of Σ_row weight·|prediction_row − target_{row + shift}|²."""
    cols = tl.arange(0, BLOCK)
    inside = cols < D
    sums = tl.zeros([BLOCK], tl.float32)
    for row in range(tl.program_id(0), N - shift, tl.num_programs(0)):
        row = tl.cast(row, tl.int64)
        gap = tl.load(prediction + row * D + cols, mask=inside, other=0.0).to(tl.float32)
        gap -= tl.load(target + (row + shift) * D + cols, mask=inside, other=0.0).to(tl.float32)
        sums += tl.load(weight + row) * gap * gap
    tl.store(partials + tl.program_id(0), tl.sum(sums, axis=0))


@triton.jit
@no_type_check
def shifted_error_gradient_kernel(
    prediction, target, weight, dout, dtarget_later, dprediction_later, dprediction, dtarget,
    N, D, shift, HAS_DTARGET_LATER: tl.constexpr, HAS_DPREDICTION_LATER: tl.constexpr, NEEDS_DTARGET: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write dprediction and dtarget, plus the gradients from later layers."""
    row, cols = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = cols < D
    twice = 2.0 * tl.load(dout)
    own = tl.load(target + row * D + cols, mask=inside, other=0.0).to(tl.float32)
    ahead = inside & (row + shift + 0 * cols < N)
    gap = tl.load(prediction + row * D + cols, mask=inside, other=0.0).to(tl.float32)
    gap -= tl.load(target + (row + shift) * D + cols, mask=ahead, other=0.0).to(tl.float32)
    d = twice * tl.load(weight + row) * gap
    if HAS_DPREDICTION_LATER:
        d += tl.load(dprediction_later + row * D + cols, mask=inside, other=0.0).to(tl.float32)
    tl.store(dprediction + row * D + cols, d.to(dprediction.dtype.element_ty), mask=inside)
    if NEEDS_DTARGET:
        behind = inside & (row + 0 * cols >= shift)
        gap = tl.load(prediction + (row - shift) * D + cols, mask=behind, other=0.0).to(tl.float32) - own
        d = tl.where(behind, -twice * tl.load(weight + tl.maximum(row - shift, 0)) * gap, 0.0)
        if HAS_DTARGET_LATER:
            d += tl.load(dtarget_later + row * D + cols, mask=inside, other=0.0).to(tl.float32)
        tl.store(dtarget + row * D + cols, d.to(dtarget.dtype.element_ty), mask=inside)
