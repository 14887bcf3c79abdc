# ruff: noqa: RUF005 - Triton has no unpacking of tuples
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the Epps–Pulley statistic; `epps_pulley` launches them.

The knots t_k = t_0 + k·Δ are evenly spaced, so e^{i t_k x} is e^{i t_0 x} times a power of e^{i Δ x}: two sines and two
cosines of each x, and products in registers.

Legend: S samples, N draws of a sample, M directions, K knots; n draws and m directions of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

# π/2 in three parts, the first two of so few bits that up to 2^13 of them are exact in fp32.
HALF_PI = tl.constexpr(1.5703125)
HALF_PI_LOW = tl.constexpr(0.00048351287841796875)
HALF_PI_LOWEST = tl.constexpr(3.13916478589249e-07)


@triton.jit
@no_type_check
def _turn(angle):
    """(cos, sin) to fp32's rounding for angles up to ±8,192 or so; beyond that less and less, but within the circle.

    One reduction to ± π/4 and the two Taylor series serve both: the library's functions would cost as much as the rest
    of the kernels together.
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
    turned_cos = tl.where(odd, sin, cos)
    turned_sin = tl.where(odd, cos, sin)
    turned_cos = tl.where(((quadrant + 1) & 2) != 0, -turned_cos, turned_cos)
    return turned_cos, tl.where((quadrant & 2) != 0, -turned_sin, turned_sin)


@triton.jit
@no_type_check
def sums_kernel(
    x, t, sums,
    N, M, rows, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """Σ cos t_k x and Σ sin t_k x over `rows` draws, as one part: sums is (parts, S, K, 2, M), x (S, N, M)."""
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(1)
    s = tl.program_id(2).to(tl.int64)
    start = tl.load(t)
    step = tl.load(t + 1) - start
    cosines = ()
    sines = ()
    for _ in tl.static_range(K):
        cosines = cosines + (tl.zeros((BLOCK_N, BLOCK_M), tl.float32),)
        sines = sines + (tl.zeros((BLOCK_N, BLOCK_M), tl.float32),)
    for first in tl.range(part * rows, tl.minimum(part * rows + rows, N), BLOCK_N):
        n = first + tl.arange(0, BLOCK_N)
        inside = (n < tl.minimum(part * rows + rows, N))[:, None] & (m < M)[None, :]
        x_nm = tl.load(x + (s * N + n.to(tl.int64)[:, None]) * M + m[None, :], mask=inside, other=0.0)
        # What lies outside starts as 0 and stays 0, since turning keeps the length.
        cos, sin = _turn(start * x_nm)
        cos = tl.where(inside, cos, 0.0)
        turn_cos, turn_sin = _turn(step * x_nm)
        new_cosines = ()
        new_sines = ()
        for k in tl.static_range(K):
            new_cosines = new_cosines + (cosines[k] + cos,)
            new_sines = new_sines + (sines[k] + sin,)
            turned = cos * turn_cos - sin * turn_sin
            sin = sin * turn_cos + cos * turn_sin
            cos = turned
        cosines = new_cosines
        sines = new_sines
    out = sums + (part * tl.num_programs(2) + s) * K * 2 * M + m
    for k in tl.static_range(K):
        tl.store(out + 2 * k * M, tl.sum(cosines[k], axis=0), mask=m < M)
        tl.store(out + (2 * k + 1) * M, tl.sum(sines[k], axis=0), mask=m < M)


@triton.jit
@no_type_check
def gradient_kernel(
    x, t, a, b, out,
    N, M, S, K, BLOCK_N: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """out = Σ_k a_k cos t_k x − b_k sin t_k x, with a and b (K, S, M) shared by a sample's draws.

    It is the real part of e^{i t_0 x} · Σ_k (a_k + i b_k) (e^{i Δ x})^k, summed from the highest power down.
    """
    m = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tl.program_id(1) * BLOCK_N + tl.arange(0, BLOCK_N)
    s = tl.program_id(2).to(tl.int64)
    start = tl.load(t)
    step = tl.load(t + 1) - start
    inside = (n < N)[:, None] & (m < M)[None, :]
    at = (s * N + n.to(tl.int64)[:, None]) * M + m[None, :]
    x_nm = tl.load(x + at, mask=inside, other=0.0)
    cos, sin = _turn(step * x_nm)
    real = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    imaginary = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for j in tl.range(0, K):
        at_k = ((K - 1 - j) * S + s) * M + m
        turned = real * cos - imaginary * sin + tl.load(a + at_k, mask=m < M, other=0.0)[None, :]
        imaginary = imaginary * cos + real * sin + tl.load(b + at_k, mask=m < M, other=0.0)[None, :]
        real = turned
    cos, sin = _turn(start * x_nm)
    tl.store(out + at, real * cos - imaginary * sin, mask=inside)
