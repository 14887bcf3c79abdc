# ruff: noqa: RUF005 - Triton has no unpacking of tuples
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the Epps–Pulley statistic.

The knots t_k = t_0 + k·Δ are evenly spaced, so e^{i t_k x} is e^{i t_0 x} times a power of e^{i Δ x}. This needs two
sines and two cosines of each x, and multiplications in registers.

Legend: S samples, N values of a sample, M directions, K knots; n values and m directions of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

# π/2 as a sum of three terms. The first two have so few bits that multiples up to 2^13 are exact in fp32.
HALF_PI = tl.constexpr(1.5703125)
HALF_PI_LOW = tl.constexpr(0.00048351287841796875)
HALF_PI_LOWEST = tl.constexpr(3.13916478589249e-07)


@triton.jit
@no_type_check
def _cos_sin(angle):
    """Return (cos, sin) with fp32 precision for angles up to about ±8,192, and with less precision beyond.

    Both use one reduction to ±π/4 and a Taylor series. The library functions would double the time of the kernels.
    """
    quarters = tl.floor(angle * 0.6366197723675814 + 0.5)
    r = angle - quarters * HALF_PI - quarters * HALF_PI_LOW - quarters * HALF_PI_LOWEST
    r = tl.clamp(r, -0.8, 0.8, propagate_nan=tl.PropagateNan.ALL)
    square = r * r
    sin = square * (square * (square * (1.0 / 362880.0) - 1.0 / 5040.0) + 1.0 / 120.0) - 1.0 / 6.0
    sin = r + r * square * sin
    cos = square * (square * (square * (1.0 / 40320.0) - 1.0 / 720.0) + 1.0 / 24.0) - 0.5
    cos = 1.0 + square * cos
    quadrant = quarters.to(tl.int32)
    odd = (quadrant & 1) != 0
    rotated_cos = tl.where(odd, sin, cos)
    rotated_sin = tl.where(odd, cos, sin)
    rotated_cos = tl.where(((quadrant + 1) & 2) != 0, -rotated_cos, rotated_cos)
    return rotated_cos, tl.where((quadrant & 2) != 0, -rotated_sin, rotated_sin)


@triton.jit
@no_type_check
def sums_kernel(
    x, t, sums,
    N, M, rows, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Write partial sums of cos t_k x and sin t_k x, of `rows` values each, to `sums` (partials, S, K, 2, M)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    partial = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    start = tl.load(t)
    step = tl.load(t + 1) - start
    cosines = ()
    sines = ()
    for _ in tl.static_range(K):
        cosines = cosines + (tl.zeros((BLOCK_N, BLOCK_M), tl.float32),)
        sines = sines + (tl.zeros((BLOCK_N, BLOCK_M), tl.float32),)
    for first in tl.range(partial * rows, tl.minimum(partial * rows + rows, N), BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        inside = (n < tl.minimum(partial * rows + rows, N))[:, None] & (m < M)[None, :]
        x_nm = tl.load(x + (s * N + n.to(tl.int64)[:, None]) * M + m[None, :], mask=inside, other=0.0)
        # Values outside start as 0 and stay 0, because a rotation preserves the magnitude.
        cos, sin = _cos_sin(start * x_nm)
        cos = tl.where(inside, cos, 0.0)
        step_cos, step_sin = _cos_sin(step * x_nm)
        new_cosines = ()
        new_sines = ()
        for k in tl.static_range(K):
            new_cosines = new_cosines + (cosines[k] + cos,)
            new_sines = new_sines + (sines[k] + sin,)
            rotated = cos * step_cos - sin * step_sin
            sin = sin * step_cos + cos * step_sin
            cos = rotated
        cosines = new_cosines
        sines = new_sines
    out = sums + (partial * tl.num_programs(2) + s) * K * 2 * M + m
    for k in tl.static_range(K):
        tl.store(out + 2 * k * M, tl.sum(cosines[k], axis=0), mask=m < M)
        tl.store(out + (2 * k + 1) * M, tl.sum(sines[k], axis=0), mask=m < M)


@triton.jit
@no_type_check
def gradient_kernel(
    x, t, a, b, out,
    N, M, S, K, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """out = Σ_k a_k cos t_k x − b_k sin t_k x, with a and b (K, S, M) common to the values of a sample.

    This is the real partial of e^{i t_0 x} · Σ_k (a_k + i b_k) (e^{i Δ x})^k, evaluated with Horner's method.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.program_id(2).to(tl.int64)
    start = tl.load(t)
    step = tl.load(t + 1) - start
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (s * N + n.to(tl.int64)[:, None]) * M + m[None, :]
    x_nm = tl.load(x + at, mask=inside, other=0.0)
    cos, sin = _cos_sin(step * x_nm)
    real = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    imaginary = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for j in tl.range(0, K):
        at_k = ((K - 1 - j) * S + s) * M + m
        rotated = real * cos - imaginary * sin + tl.load(a + at_k, mask=m < M, other=0.0)[None, :]
        imaginary = imaginary * cos + real * sin + tl.load(b + at_k, mask=m < M, other=0.0)[None, :]
        real = rotated
    cos, sin = _cos_sin(start * x_nm)
    tl.store(out + at, real * cos - imaginary * sin, mask=inside)
