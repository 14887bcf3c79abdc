# ruff: noqa: RUF005 - Triton has no unpacking of tuples
# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the causal convolution with SiLU.

A program processes CHUNK tokens of one sequence in order, for BLOCK channels. It keeps the previous W − 1 inputs of its
channels in registers, so each value is read once. `window` is a tuple with one row for each of the previous tokens, the
latest first. A reset sets these rows to 0.

Legend: B batch, T time, C channels, W = d_conv taps (lag k reads k tokens back with kernel[W − 1 − k]). A stride has
the name of its tensor with the suffix _b, _t or _c.
"""

from typing import no_type_check

import triton
import triton.language as tl


@triton.jit
@no_type_check
def _taps(kernel, c_C, inside_C, W: tl.constexpr):
    """Return the columns of the kernel in fp32, lag 0 first."""
    taps = ()
    for k in tl.static_range(W):
        taps = taps + (tl.load(kernel + c_C * W + (W - 1 - k), mask=inside_C, other=0.0).to(tl.float32),)
    return taps


@triton.jit
@no_type_check
def _scale(window, factor, COUNT: tl.constexpr):
    """Multiply all rows of `window` by `factor`."""
    result = ()
    for k in tl.static_range(COUNT):
        result = result + (window[k] * factor,)
    return result


@triton.jit
@no_type_check
def _push(window, newest, COUNT: tl.constexpr):
    """Add the newest row to `window` and drop the oldest."""
    result = (newest,)
    for k in tl.static_range(COUNT - 1):
        result = result + (window[k],)
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
    """Return a mask of all channels or of none. (The interpreter does not keep scalars combined with & boolean.)"""
    return c_C < tl.where(condition, C, 0)


@triton.jit
@no_type_check
def _keep(reset, t, mask, reset_t):
    """Return 1.0, or 0.0 at a reset."""
    return 1.0 - tl.load(reset + t * reset_t, mask=mask, other=0).to(tl.float32)


@triton.jit
@no_type_check
def _initial_window(
    x, history, reset, first, c_C, C, x_t, reset_t,
    W: tl.constexpr, BLOCK: tl.constexpr, HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Return the W − 1 inputs before token `first`, to which the pointers point. The history precedes token 0."""
    window = _zeros(W - 1, BLOCK)
    for j in tl.static_range(W - 1):
        t = j - (W - 1)
        x_C = tl.load(x + t * x_t + c_C, mask=_if(first > 0, c_C, C), other=0.0).to(tl.float32)
        if HAS_HISTORY:
            x_C += tl.load(history + c_C * (W - 1) + j, mask=_if(first == 0, c_C, C), other=0.0).to(tl.float32)
        if HAS_RESET:
            window = _scale(window, _keep(reset, t, first > 0, reset_t), W - 1)
        window = _push(window, x_C, W - 1)
    return window


@triton.jit
@no_type_check
def forward_kernel(
    x, history, kernel, bias, reset, out,
    length, C, x_b, x_t, reset_b, reset_t, out_b, out_t,
    W: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """out = silu(bias + Σ_k tap_k · x_{t−k}). PREFETCH tokens are loaded ahead."""
    c_C = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_C = c_C < C
    first = tl.program_id(1).to(tl.int64) * CHUNK
    remaining = (length - first).to(tl.int32)
    end = tl.minimum(remaining, CHUNK)
    b = tl.program_id(2).to(tl.int64)
    x += b * x_b + first * x_t
    out += b * out_b + first * out_t
    reset += b * reset_b + first * reset_t
    history += b * C * (W - 1)
    taps = _taps(kernel, c_C, inside_C, W)
    bias_C = tl.load(bias + c_C, mask=inside_C, other=0.0).to(tl.float32)
    window = _initial_window(x, history, reset, first, c_C, C, x_t, reset_t, W, BLOCK, HAS_HISTORY, HAS_RESET)
    for start in tl.range(0, end, PREFETCH):
        inputs = ()
        for j in tl.static_range(PREFETCH):
            inputs = inputs + (tl.load(x + (start + j) * x_t + c_C, mask=_if(start + j < end, c_C, C), other=0.0),)
        for j in tl.static_range(PREFETCH):
            t = start + j
            if HAS_RESET:
                window = _scale(window, _keep(reset, t, t < remaining, reset_t), W - 1)
            x_C = inputs[j].to(tl.float32)
            pre_C = bias_C + taps[0] * x_C
            for k in tl.static_range(1, W):
                pre_C += taps[k] * window[k - 1]
            tl.store(out + t * out_t + c_C, pre_C * tl.sigmoid(pre_C), mask=_if(t < end, c_C, C))
            window = _push(window, x_C, W - 1)


@triton.jit
@no_type_check
def backward_kernel(
    dout, x, history, kernel, bias, reset, dx, dhistory, partials,
    length, C, dout_b, dout_t, x_b, x_t, reset_b, reset_t, dx_b, dx_t,
    W: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr, PREFETCH: tl.constexpr,
    HAS_HISTORY: tl.constexpr, HAS_RESET: tl.constexpr,
):  # fmt: skip
    """Write dx of CHUNK tokens, and partial sums of the gradients of the kernel (C, W) and, behind it, the bias (C).

    dx_t depends on the tokens up to t + W − 1, so the loop continues W − 1 tokens past the chunk. The gradients of
    kernel and bias use only the tokens of the chunk. `pending` has the incomplete dx of the previous tokens, and
    `connected` whether the current token reads them (0 or 1).
    """
    c_C = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside_C = c_C < C
    first = tl.program_id(1).to(tl.int64) * CHUNK
    remaining = (length - first).to(tl.int32)
    end = tl.minimum(remaining, CHUNK)
    b = tl.program_id(2).to(tl.int64)
    x += b * x_b + first * x_t
    dout += b * dout_b + first * dout_t
    dx += b * dx_b + first * dx_t
    reset += b * reset_b + first * reset_t
    history += b * C * (W - 1)
    dhistory += b * C * (W - 1)
    taps = _taps(kernel, c_C, inside_C, W)
    bias_C = tl.load(bias + c_C, mask=inside_C, other=0.0).to(tl.float32)
    window = _initial_window(x, history, reset, first, c_C, C, x_t, reset_t, W, BLOCK, HAS_HISTORY, HAS_RESET)
    pending = _zeros(W - 1, BLOCK)
    connected = ()
    for _ in tl.static_range(W - 1):
        connected = connected + (tl.full((), 1.0, tl.float32),)
    dtaps = _zeros(W, BLOCK)
    dbias_C = tl.zeros((BLOCK,), tl.float32)
    for start in tl.range(0, end + (W - 1), PREFETCH):
        inputs = ()
        douts = ()
        for j in tl.static_range(PREFETCH):
            live_C = _if(start + j < remaining, c_C, C)
            inputs = inputs + (tl.load(x + (start + j) * x_t + c_C, mask=live_C, other=0.0),)
            douts = douts + (tl.load(dout + (start + j) * dout_t + c_C, mask=live_C, other=0.0),)
        for j in tl.static_range(PREFETCH):
            t = start + j
            if HAS_RESET:
                keep = _keep(reset, t, t < remaining, reset_t)
                window = _scale(window, keep, W - 1)
                connected = _scale(connected, keep, W - 1)
            x_C = inputs[j].to(tl.float32)
            pre_C = bias_C + taps[0] * x_C
            for k in tl.static_range(1, W):
                pre_C += taps[k] * window[k - 1]
            gate_C = tl.sigmoid(pre_C)
            dpre_C = douts[j].to(tl.float32) * gate_C * (1.0 + pre_C * (1.0 - gate_C))

            dpre_own_C = tl.where(t < end, dpre_C, 0.0)
            dbias_C += dpre_own_C
            sums = (dtaps[0] + dpre_own_C * x_C,)
            for k in tl.static_range(1, W):
                sums = sums + (dtaps[k] + dpre_own_C * window[k - 1],)
            dtaps = sums

            updated = (taps[0] * dpre_C,)
            for k in tl.static_range(1, W):
                term_C = taps[k] * dpre_C
                if HAS_RESET:
                    term_C *= connected[k - 1]
                updated = updated + (pending[k - 1] + term_C,)
            done = t - (W - 1)
            mask_C = _if(done < tl.where(done < 0, done, end), c_C, C)
            tl.store(dx + done * dx_t + c_C, updated[W - 1], mask=mask_C)
            if HAS_HISTORY:
                before = tl.where(first == 0, W - 1, 0)
                tl.store(dhistory + c_C * (W - 1) + t, updated[W - 1], mask=_if(t < before, c_C, C))
            pending = _first(updated, W - 1)
            window = _push(window, x_C, W - 1)
            connected = _push(connected, tl.full((), 1.0, tl.float32), W - 1)
    offset = (b * tl.num_programs(1) + tl.program_id(1)) * (W + 1) * C
    for k in tl.static_range(W):
        tl.store(partials + offset + c_C * W + (W - 1 - k), dtaps[k], mask=inside_C)
    tl.store(partials + offset + W * C + c_C, dbias_C, mask=inside_C)
