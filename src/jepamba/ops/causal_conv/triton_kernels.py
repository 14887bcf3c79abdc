# ruff: noqa: RUF005 - Triton has no unpacking of tuples
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the causal convolution with SiLU; `conv` launches them.

A program walks over CHUNK tokens of one sequence, one after the other, for BLOCK channels: a thread has its channels'
last inputs in registers, so that every number is read once. Tuples of W − 1 rows hold what belongs to the tokens
1 … W − 1 before the present one, the nearest first. A reset takes away what is held of the past.

Legend: B batch, T time, C channels, W taps (`lag` k reads k tokens back and is kernel[W − 1 − k]). Strides of the
pointers are named as their tensors with _b, _t and _c.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _taps(kernel, c_C, inside_C, W: tl.constexpr):
    """The kernel's columns in fp32, lag 0 first."""
    taps = ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(kernel + c_C * W + (W - 1 - k), mask=inside_C, other=0.0).to(tl.float32),)
    return taps


@triton.jit
@no_type_check
def _scaled(held, factor, COUNT: tl.constexpr):
    """All that is held, times `factor`."""
    result = ()
    for k in tl.static_range(COUNT):
        result = result + (held[k] * factor,)
    return result


@triton.jit
@no_type_check
def _pushed(held, newest, COUNT: tl.constexpr):
    """What is held one token later."""
    result = (newest,)
    for k in tl.static_range(COUNT - 1):
        result = result + (held[k],)
    return result


@triton.jit
@no_type_check
def _first(values, COUNT: tl.constexpr):
    result = ()
    for k in tl.static_range(COUNT):
        result = result + (values[k],)
    return result


@triton.jit
@no_type_check
def _zeros(COUNT: tl.constexpr, BLOCK: tl.constexpr):
    result = ()
    for _ in tl.static_range(COUNT):
        result = result + (tl.zeros((BLOCK,), tl.float32),)
    return result


@triton.jit
@no_type_check
def _if(condition, c_C, C):
    """A mask of all channels or of none. (Scalars that are combined with & do not stay booleans in the interpreter.)"""
    return c_C < tl.where(condition, C, 0)


@triton.jit
@no_type_check
def _keep(reset, t, there, reset_t):
    """1, or 0 at a reset."""
    return 1.0 - tl.load(reset + t * reset_t, mask=there, other=0).to(tl.float32)


@triton.jit
@no_type_check
def _held_before(
    x, history, reset, first, c_C, C, x_t, reset_t,
    W: tl.constexpr, BLOCK: tl.constexpr, HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """The W − 1 inputs before token `first`, where the pointers are; those before token 0 come from the history."""
    held = _zeros(W - 1, BLOCK)
    for j in tl.static_range(W - 1):
        t = j - (W - 1)
        x_C = tl.load(x + t * x_t + c_C, mask=_if(first > 0, c_C, C), other=0.0).to(tl.float32)
        if HAS_HISTORY:
            x_C += tl.load(history + c_C * (W - 1) + j, mask=_if(first == 0, c_C, C), other=0.0).to(tl.float32)
        if HAS_RESET:
            held = _scaled(held, _keep(reset, t, first > 0, reset_t), W - 1)
        held = _pushed(held, x_C, W - 1)
    return held


@triton.jit
@no_type_check
def forward_kernel(
    x, history, kernel, bias, reset, out,
    length, C, x_b, x_t, reset_b, reset_t, out_b, out_t,
    W: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """out = silu(bias + Σ_k tap_k · x_{t−k}); AHEAD tokens are on their way at once."""
    c_C = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_C = c_C < C
    first = tl.program_id(1).to(tl.int64) * CHUNK
    left = (length - first).to(tl.int32)
    end = tl.minimum(left, CHUNK)
    b = tl.program_id(2).to(tl.int64)
    x += b * x_b + first * x_t
    out += b * out_b + first * out_t
    reset += b * reset_b + first * reset_t
    history += b * C * (W - 1)
    taps = _taps(kernel, c_C, inside_C, W)
    bias_C = tl.load(bias + c_C, mask=inside_C, other=0.0).to(tl.float32)
    held = _held_before(x, history, reset, first, c_C, C, x_t, reset_t, W, BLOCK, HAS_HISTORY, HAS_RESET)
    for start in tl.range(0, end, AHEAD):
        news = ()
        for j in tl.static_range(AHEAD):
            news = news + (tl.load(x + (start + j) * x_t + c_C, mask=_if(start + j < end, c_C, C), other=0.0),)
        for j in tl.static_range(AHEAD):
            t = start + j
            if HAS_RESET:
                held = _scaled(held, _keep(reset, t, t < left, reset_t), W - 1)
            x_C = news[j].to(tl.float32)
            pre_C = bias_C + taps[0] * x_C
            for k in tl.static_range(1, W):
                pre_C += taps[k] * held[k - 1]
            tl.store(out + t * out_t + c_C, pre_C * tl.sigmoid(pre_C), mask=_if(t < end, c_C, C))
            held = _pushed(held, x_C, W - 1)


@triton.jit
@no_type_check
def backward_kernel(
    dout, x, history, kernel, bias, reset, dx, dhistory, parts,
    length, C, dout_b, dout_t, x_b, x_t, reset_b, reset_t, dx_b, dx_t,
    W: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, AHEAD: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """dx of CHUNK tokens, and their parts of the gradients: the kernel's (C, W), and the bias's (C) behind it.

    dx_t is whole once token t + W − 1 has been seen, so the walk goes W − 1 tokens past the chunk; the sums of taps
    and bias take its own tokens alone. `due` holds the gradients of the last tokens as far as they are known, `sees`
    whether the present token still sees them (0 or 1).
    """
    c_C = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_C = c_C < C
    first = tl.program_id(1).to(tl.int64) * CHUNK
    left = (length - first).to(tl.int32)
    end = tl.minimum(left, CHUNK)
    b = tl.program_id(2).to(tl.int64)
    x += b * x_b + first * x_t
    dout += b * dout_b + first * dout_t
    dx += b * dx_b + first * dx_t
    reset += b * reset_b + first * reset_t
    history += b * C * (W - 1)
    dhistory += b * C * (W - 1)
    taps = _taps(kernel, c_C, inside_C, W)
    bias_C = tl.load(bias + c_C, mask=inside_C, other=0.0).to(tl.float32)
    held = _held_before(x, history, reset, first, c_C, C, x_t, reset_t, W, BLOCK, HAS_HISTORY, HAS_RESET)
    due = _zeros(W - 1, BLOCK)
    sees = ()
    for _ in tl.static_range(W - 1):
        sees = sees + (tl.full((), 1.0, tl.float32),)
    dtaps = _zeros(W, BLOCK)
    dbias_C = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, end + (W - 1), AHEAD):
        news = ()
        pulls = ()
        for j in tl.static_range(AHEAD):
            live_C = _if(start + j < left, c_C, C)
            news = news + (tl.load(x + (start + j) * x_t + c_C, mask=live_C, other=0.0),)
            pulls = pulls + (tl.load(dout + (start + j) * dout_t + c_C, mask=live_C, other=0.0),)
        for j in tl.static_range(AHEAD):
            t = start + j
            if HAS_RESET:
                keep = _keep(reset, t, t < left, reset_t)
                held = _scaled(held, keep, W - 1)
                sees = _scaled(sees, keep, W - 1)
            x_C = news[j].to(tl.float32)
            pre_C = bias_C + taps[0] * x_C
            for k in tl.static_range(1, W):
                pre_C += taps[k] * held[k - 1]
            gate_C = tl.sigmoid(pre_C)
            dpre_C = pulls[j].to(tl.float32) * gate_C * (1.0 + pre_C * (1.0 - gate_C))

            own_C = tl.where(t < end, dpre_C, 0.0)
            dbias_C += own_C
            sums = (dtaps[0] + own_C * x_C,)
            for k in tl.static_range(1, W):
                sums = sums + (dtaps[k] + own_C * held[k - 1],)
            dtaps = sums

            grown = (taps[0] * dpre_C,)
            for k in tl.static_range(1, W):
                share_C = taps[k] * dpre_C
                if HAS_RESET:
                    share_C *= sees[k - 1]
                grown = grown + (due[k - 1] + share_C,)
            done = t - (W - 1)
            mask_C = _if(done < tl.where(done < 0, done, end), c_C, C)
            tl.store(dx + done * dx_t + c_C, grown[W - 1], mask=mask_C)
            if HAS_HISTORY:
                before = tl.where(first == 0, W - 1, 0)
                tl.store(dhistory + c_C * (W - 1) + t, grown[W - 1], mask=_if(t < before, c_C, C))
            due = _first(grown, W - 1)
            held = _pushed(held, x_C, W - 1)
            sees = _pushed(sees, tl.full((), 1.0, tl.float32), W - 1)
    part = (b * tl.num_programs(1) + tl.program_id(1)) * (W + 1) * C
    for k in tl.static_range(W):
        tl.store(parts + part + c_C * W + (W - 1 - k), dtaps[k], mask=inside_C)
    tl.store(parts + part + W * C + c_C, dbias_C, mask=inside_C)
