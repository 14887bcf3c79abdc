# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""The two small Triton kernels before and after those of `triton_kernels` (see there): decays, and their gradients.

Legend: B batch, T time, H heads, c chunks, L chunk length, P head width.
"""

from typing import no_type_check

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
# dt is never taken smaller than this where its gradient is a quotient by it.
TINY = tl.constexpr(1e-20)


@triton.jit
@no_type_check
def prepare_kernel(
    dt, A, reset, dts, logs, documents,
    T, H, chunks, dt_sb, dt_st, dt_sh, reset_sb, reset_st,
    L: tl.constexpr, BLOCK: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """dt in fp32 and s (B, H, chunks·L), and the documents (B, chunks·L), for BLOCK chunks of one (sequence, head)."""
    h = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    # 64 bits: token times stride may pass 2³¹.
    t_cL = c[:, None].to(tl.int64) * L + tl.arange(0, L)[None, :]
    dt_cL = tl.load(dt + b * dt_sb + t_cL * dt_st + h * dt_sh, mask=t_cL < T, other=0.0).to(tl.float32)
    s_cL = tl.cumsum(dt_cL * (tl.load(A + h).to(tl.float32) * LOG2E), axis=1)
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
    dts, logs, documents, A, reset, sums, passing, ddt, dA, dD,
    T, H, chunks, sums_sk, reset_sb, reset_st,
    L: tl.constexpr, P: tl.constexpr, BLOCK: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """ddt (B,T,H), and this block's parts of dA and dD, from the sums that `gradient_kernel` left.

    Of one head's share in dB and dC, B_j·dB_j is the gradient times the value of all readings of what token j wrote,
    and C_i·dC_i that of all readings by token i. The log-decay of token t carries every reading by t or later of what
    was written before t: within the chunk, readings by tokens from t on, less those of things written from t on; and
    all that passes over the chunk's end. Both sums are of the same rounded terms: what is in both cancels.
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
    passing_cP = passing + (row + c[:, None]) * P + tl.arange(0, P)[None, :]
    passing_c = tl.sum(tl.load(passing_cP, mask=(c < chunks)[:, None], other=0.0), axis=1)
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
    tl.store(ddt + (b * T + t_cL) * H + h, written_cL / tl.maximum(dt_cL, TINY) + A_h * dlog_cL, mask=inside_cL)
    part = (h * tl.num_programs(1) + b) * tl.num_programs(2) + tl.program_id(2)
    tl.store(dA + part, tl.sum(tl.sum(dt_cL * dlog_cL, axis=1), axis=0))
    tl.store(dD + part, tl.sum(tl.sum(diagonal_cL, axis=1), axis=0))
