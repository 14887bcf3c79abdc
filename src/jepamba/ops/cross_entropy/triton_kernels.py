# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the capped cross-entropy; `cross_entropy` launches them.

Of one row of raw logits r: z = softcap(r + bias) / temperature, lse = ln Σ e^z, ce = lse − z[target], and the gradient
of (ce + z_weight·lse²)·scale by r is (softmax·(1 + 2·z_weight·lse) − onehot)·scale·slope, written where r was.

They are bound by arithmetic: exponentials are to base 2, which the hardware has, of logits that one product brings from
units of the cap to that base; and where rows fill their tiles there are no masks.

Legend: n rows of a slice, V vocabulary, R rows that a program takes at once, BLOCK columns of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

LN2, LOG2E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _cap(raw, cap, KIND: tl.constexpr):
    """(soft-capped logits divided by the cap, slope). A NaN stays one, as in PyTorch: a broken model is noticed."""
    if KIND == "poly":
        u = tl.clamp(raw * (1.0 / cap), -2.0, 2.0, propagate_nan=tl.PropagateNan.ALL)
        square = u * u
        unit = u * (1.0 + square * (square * (1.0 / 15.0) - 1.0 / 3.0))
        slope = tl.where(tl.abs(unit) < 1.0, 1.0 + square * (square * (1.0 / 3.0) - 1.0), 0.0)
        return tl.clamp(unit, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL), slope
    elif KIND == "tanh":
        # tanh(u) = 1 − 2/(1 + e^{2u}), which is ±1 where the exponential overflows or vanishes.
        unit = 1.0 - 2.0 / (1.0 + tl.exp(raw * (2.0 / cap)))
        return unit, 1.0 - unit * unit
    else:
        return raw * (1.0 / cap), tl.full(raw.shape, 1.0, tl.float32)


@triton.jit
@no_type_check
def _load(at, bias, inside, cap, KIND: tl.constexpr, FULL: tl.constexpr = False):
    raw = tl.load(at) if FULL else tl.load(at, mask=inside, other=0.0)
    return _cap(raw.to(tl.float32) + bias, cap, KIND)


@triton.jit
@no_type_check
def row_kernel(
    raw, bias, targets, ce, lse, parts,
    n, V, cap, coldness, scale, z_twice,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, BOUNDED: tl.constexpr, LEARN: tl.constexpr, FULL: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Whole rows at a time, R of them, every (programs·R)-th: one read, and one write where LEARN.

    The column sums of the gradient, that of the bias, stay in registers and end as one row of `parts`. Logits that are
    BOUNDED need no maximum taken off before the exponential. `z_twice` is 2·z_weight.
    FULL: one row at a time, of exactly BLOCK columns.
    """
    col_1V = tl.arange(0, BLOCK)[None, :]
    bias_1V = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        bias_1V = tl.load(bias + col_1V, mask=col_1V < V, other=0.0).to(tl.float32)
    sums_RV = tl.zeros((R, BLOCK), tl.float32)
    coldness *= cap * LOG2E
    for first in tl.range(tl.program_id(0) * R, n, tl.num_programs(0) * R, num_stages=STAGES):
        row_R = first + tl.arange(0, R)
        live_R = row_R < n
        row_at_R = raw + row_R.to(tl.int64) * V
        at_RV = row_at_R[:, None] + col_1V
        inside_RV = live_R[:, None] & (col_1V < V)
        target_R = tl.load(targets + row_R, mask=live_R, other=0).to(tl.int32)
        bias_R = tl.zeros((R,), tl.float32)
        if HAS_BIAS:
            bias_R = tl.load(bias + target_R).to(tl.float32)
        reached_R, _ = _load(row_at_R + target_R, bias_R, live_R, cap, KIND)
        z_RV, slope_RV = _load(at_RV, bias_1V, inside_RV, cap, KIND, FULL)
        z_RV *= coldness
        if LEARN and R > 1:
            # The target's logit is read by several warps and overwritten by one, which must come last. (With one row
            # at a time the warps meet in its sum anyway.)
            tl.debug_barrier()
        top_R = tl.zeros((R,), tl.float32)
        if not BOUNDED:
            # A row past the end has no logits: its maximum is taken as 0.
            top_R = tl.where(live_R, tl.max(tl.where(inside_RV, z_RV, float("-inf")), axis=1), 0.0)
            z_RV -= top_R[:, None]
        e_RV = tl.exp2(z_RV)
        if not FULL:
            e_RV = tl.where(inside_RV, e_RV, 0.0)
        total_R = tl.where(live_R, tl.sum(e_RV, axis=1), 1.0)
        lse_R = tl.log(total_R) + top_R * LN2
        tl.store(ce + row_R, lse_R - reached_R * coldness * LN2, mask=live_R)
        tl.store(lse + row_R, lse_R, mask=live_R)
        if LEARN:
            weight_R = tl.where(live_R, scale * (1.0 + z_twice * lse_R) / total_R, 0.0)
            # A row past the end takes a target that it has not: none.
            target_R = tl.where(live_R, target_R, -1)
            onehot_RV = tl.where(col_1V == target_R[:, None], scale, 0.0)
            grad_RV = (e_RV * weight_R[:, None] - onehot_RV) * slope_RV
            if FULL:
                tl.store(at_RV, grad_RV)
            else:
                tl.store(at_RV, grad_RV, mask=inside_RV)
            sums_RV += grad_RV
    if LEARN:
        at_V = tl.program_id(0).to(tl.int64) * V + tl.arange(0, BLOCK)
        tl.store(parts + at_V, tl.sum(sums_RV, axis=0), mask=tl.arange(0, BLOCK) < V)


@triton.jit
@no_type_check
def _finite(top):
    """What is taken off before the exponential: 0 where there is nothing but −∞ yet."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
@no_type_check
def logsumexp_kernel(
    raw, bias, targets, ce, lse,
    V, cap, coldness, KIND: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """ce and lse of one row that is too long for a tile, block after block."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    coldness *= cap * LOG2E
    top_V = tl.full((BLOCK,), float("-inf"), tl.float32)
    total_V = tl.zeros((BLOCK,), tl.float32)
    reached_V = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        col_V = start + tl.arange(0, BLOCK)
        inside_V = col_V < V
        bias_V = tl.zeros((BLOCK,), tl.float32)
        if HAS_BIAS:
            bias_V = tl.load(bias + col_V, mask=inside_V, other=0.0).to(tl.float32)
        z_V, _ = _load(raw + row * V + col_V, bias_V, inside_V, cap, KIND)
        z_V *= coldness
        reached_V += tl.where(col_V == target, z_V, 0.0)
        # Each lane has a maximum of its own.
        new_V = tl.where(inside_V, tl.maximum(top_V, z_V, propagate_nan=tl.PropagateNan.ALL), top_V)
        base_V = _finite(new_V)
        total_V = total_V * tl.exp2(top_V - base_V) + tl.where(inside_V, tl.exp2(z_V - base_V), 0.0)
        top_V = new_V
    top = _finite(tl.max(top_V, axis=0))
    value = top * LN2 + tl.log(tl.sum(total_V * tl.exp2(top_V - top), axis=0))
    tl.store(ce + row, value - tl.sum(reached_V, axis=0) * LN2)
    tl.store(lse + row, value)


@triton.jit
@no_type_check
def gradient_kernel(
    raw, bias, targets, lse, parts,
    n, V, cap, scale, z_twice,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The gradient of BLOCK columns, R rows at a time, over `raw`; their sums as part of one row of `parts`."""
    col_1V = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    bias_1V = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        bias_1V = tl.load(bias + col_1V, mask=col_1V < V, other=0.0).to(tl.float32)
    sums_RV = tl.zeros((R, BLOCK), tl.float32)
    for first in tl.range(tl.program_id(1) * R, n, tl.num_programs(1) * R, num_stages=STAGES):
        row_R = first + tl.arange(0, R)
        live_R = row_R < n
        at_RV = raw + row_R.to(tl.int64)[:, None] * V + col_1V
        inside_RV = live_R[:, None] & (col_1V < V)
        target_R = tl.load(targets + row_R, mask=live_R, other=0).to(tl.int32)
        lse_R = tl.load(lse + row_R, mask=live_R, other=0.0)
        unit_RV, slope_RV = _load(at_RV, bias_1V, inside_RV, cap, KIND)
        weight_R = scale * (1.0 + z_twice * lse_R)
        grad_RV = tl.exp(cap * unit_RV - lse_R[:, None]) * weight_R[:, None]
        grad_RV = (grad_RV - tl.where(col_1V == target_R[:, None], scale, 0.0)) * slope_RV
        tl.store(at_RV, grad_RV, mask=inside_RV)
        sums_RV += tl.where(live_R[:, None], grad_RV, 0.0)
    col_V = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(parts + tl.program_id(1).to(tl.int64) * V + col_V, tl.sum(sums_RV, axis=0), mask=col_V < V)
