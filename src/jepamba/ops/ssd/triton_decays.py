# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels for the decays and their gradients, which run before and after those of `triton_kernels`.

RAW: the inputs `dt` and `A` are the raw dt and A_log of a mixer, with dt = softplus(raw + dt_bias) and A = −exp(A_log).
The gradients are then with respect to the raw values.

Legend: B batch, T time, H heads, c chunks, L chunk length, P head dimension.
"""

from typing import no_type_check

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# Minimum of dt where the gradient divides by dt.
TINY = tl.constexpr(1e-20)


@triton.jit
@no_type_check
def _softplus(x):
    """Return log(1 + eˣ), or x above 20, as in PyTorch.

    log(1 + e) = 2 artanh(w) with w = e / (2 + e). For e ≤ 1, w ≤ 1/3, and seven terms of the series w + w³/3 + w⁵/5 + …
    have an error below 1e-8. The series keeps the digits of a small e, which 1 + e would lose.
    """
    e = tl.exp(-tl.abs(x))
    w = e / (2.0 + e)
    s = w * w
    series = 1.0 + s * (1 / 3 + s * (1 / 5 + s * (1 / 7 + s * (1 / 9 + s * (1 / 11 + s * (1 / 13))))))
    return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + 2.0 * w * series)


@triton.jit
@no_type_check
def _softplus_derivative(dt):
    """Return the derivative of softplus from its value dt: 1 − e^(−dt), or its series for small dt."""
    series = dt * (1.0 - dt * (1 / 2 - dt * (1 / 6 - dt * (1 / 24 - dt * (1 / 120 - dt * (1 / 720))))))
    return tl.where(dt < 0.25, series, 1.0 - tl.exp(-dt))


@triton.jit
@no_type_check
def prepare_kernel(
    dt, dt_bias, A, reset, dts, logs, documents,
    T, H, chunks, dt_sb, dt_st, dt_sh, reset_sb, reset_st,
    L: tl.constexpr, BLOCK: tl.constexpr, HAS_RESET: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """Write dt in fp32, s (B, H, chunks·L) and documents (B, chunks·L) of BLOCK chunks of one (sequence, head)."""
    h = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    # 64 bits, because token times stride can exceed 2³¹.
    t_cL = c[:, None].to(tl.int64) * L + tl.arange(0, L)[None, :]
    dt_cL = tl.load(dt + b * dt_sb + t_cL * dt_st + h * dt_sh, mask=t_cL < T, other=0.0).to(tl.float32)
    A_h = tl.load(A + h).to(tl.float32)
    if RAW:
        dt_cL = tl.where(t_cL < T, _softplus(dt_cL + tl.load(dt_bias + h).to(tl.float32)), 0.0)
        A_h = -tl.exp(A_h)
    s_cL = tl.cumsum(dt_cL * (A_h * LOG2E), axis=1)
    inside_cL = t_cL < chunks * L
    out = (b * H + h) * chunks * L + t_cL
    tl.store(dts + out, dt_cL, mask=inside_cL)
    tl.store(logs + out, s_cL, mask=inside_cL)
    if HAS_RESET and h == 0:
        reset_cL = tl.load(reset + b * reset_sb + t_cL * reset_st, mask=t_cL < T, other=0).to(tl.int32)
        tl.store(documents + b * chunks * L + t_cL, tl.cumsum(reset_cL, axis=1), mask=inside_cL)


@triton.jit
@no_type_check
def decay_gradient_kernel(
    dts, logs, documents, A, reset, sums, starts, dends, ddt, partials,
    T, H, chunks, columns, sums_sk, ddt_sb, ddt_st, ddt_sh, reset_sb, reset_st,
    L: tl.constexpr, STATE: tl.constexpr, BLOCK: tl.constexpr, HAS_RESET: tl.constexpr, RAW: tl.constexpr,
):  # fmt: skip
    """Write ddt, and partial sums of dA, dD and (RAW) ddt_bias, from the sums of `gradient_kernel`, and the
    states at the chunks' starts and the gradients of those at their ends, of STATE = P · N values each.

    ddt is (B, T, columns), with zeros in the columns from H on. partials is (programs of a head, 2 or 3, H).

    For one head, B_j·dB_j is the sum of weight × gradient of weight over the tokens i that read token j, and
    C_i·dC_i is the same sum over the tokens j that token i reads. The gradient of the log-decay of token t is the sum
    of all terms with j < t ≤ i. Within the chunk this is Σ_{i≥t} C_i·dC_i − Σ_{j≥t} B_j·dB_j. The terms that cross the
    end of the chunk are added. Both sums have the same rounded terms, so the common terms cancel.
    """
    h = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    row = (b * H + h) * chunks
    t_cL = c[:, None] * L + tl.arange(0, L)[None, :]
    inside_cL = t_cL < T
    sums += row * L + t_cL
    written_cL = tl.load(sums, mask=inside_cL, other=0.0)
    reading_cL = tl.load(sums + sums_sk, mask=inside_cL, other=0.0)
    diagonal_cL = tl.load(sums + 2 * sums_sk, mask=inside_cL, other=0.0)
    dt_cL = tl.load(dts + row * L + t_cL, mask=inside_cL, other=0.0)
    # What passes through a chunk: the product of the state at its start and the gradient at its end.
    passing_c = tl.zeros((BLOCK,), tl.float32)
    piece: tl.constexpr = 512  # divides P · N
    for first in tl.range(0, STATE, piece):
        value_cS = (row + c[:, None]) * STATE + first + tl.arange(0, piece)[None, :]
        start_cS = tl.load(starts + value_cS, mask=(c < chunks)[:, None], other=0.0).to(tl.float32)
        dend_cS = tl.load(dends + value_cS, mask=(c < chunks)[:, None], other=0.0).to(tl.float32)
        passing_c += tl.sum(start_cS * dend_cS, axis=1)
    end_c = c * L + L - 1
    passing_c *= tl.exp2(tl.load(logs + row * L + end_c, mask=c < chunks, other=0.0))
    if HAS_RESET:
        passing_c = tl.where(tl.load(documents + b * chunks * L + end_c, mask=c < chunks, other=0) == 0, passing_c, 0.0)
    passing_c += tl.sum(tl.load(sums + 3 * sums_sk, mask=inside_cL, other=0.0), axis=1)
    dlog_cL = tl.cumsum(reading_cL - written_cL, axis=1, reverse=True) + passing_c[:, None]
    if HAS_RESET:
        reset_cL = tl.load(reset + b * reset_sb + t_cL * reset_st, mask=inside_cL, other=0)
        dlog_cL = tl.where(reset_cL != 0, 0.0, dlog_cL)
    A_h = tl.load(A + h).to(tl.float32)
    dA = tl.sum(tl.sum(dt_cL * dlog_cL, axis=1), axis=0)
    if RAW:
        # A = −exp(A_log), so dA/dA_log = A.
        A_h = -tl.exp(A_h)
        dA *= A_h
    ddt_cL = written_cL / tl.maximum(dt_cL, TINY) + A_h * dlog_cL
    partial = partials + (b * tl.num_programs(2) + tl.program_id(2)) * ((3 if RAW else 2) * H) + h
    tl.store(partial, dA)
    tl.store(partial + H, tl.sum(tl.sum(diagonal_cL, axis=1), axis=0))
    if RAW:
        # This is 0 for tokens past the end, because their dt is 0.
        ddt_cL *= _softplus_derivative(dt_cL)
        tl.store(partial + 2 * H, tl.sum(tl.sum(ddt_cL, axis=1), axis=0))
    out_cL = ddt + b * ddt_sb + t_cL.to(tl.int64) * ddt_st
    tl.store(out_cL + h * ddt_sh, ddt_cL.to(ddt.dtype.element_ty), mask=inside_cL)
    for column in tl.range(H + h, columns, H):
        tl.store(out_cL + column * ddt_sh, tl.zeros((BLOCK, L), ddt.dtype.element_ty), mask=inside_cL)
