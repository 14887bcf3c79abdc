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
        cos = tl.where(inside, tl.cos(start * x_nm), 0.0)
        sin = tl.sin(start * x_nm)
        turn_cos = tl.cos(step * x_nm)
        turn_sin = tl.sin(step * x_nm)
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
def pull_kernel(
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
    cos = tl.cos(step * x_nm)
    sin = tl.sin(step * x_nm)
    real = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    imaginary = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    for j in tl.range(0, K):
        at_k = ((K - 1 - j) * S + s) * M + m
        turned = real * cos - imaginary * sin + tl.load(a + at_k, mask=m < M, other=0.0)[None, :]
        imaginary = imaginary * cos + real * sin + tl.load(b + at_k, mask=m < M, other=0.0)[None, :]
        real = turned
    tl.store(out + at, real * tl.cos(start * x_nm) - imaginary * tl.sin(start * x_nm), mask=inside)
