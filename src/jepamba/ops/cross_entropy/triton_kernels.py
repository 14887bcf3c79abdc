# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Triton kernels of the capped cross-entropy.

For a row of raw logits r: z = softcap(r + bias) / temperature, lse = ln Σ e^z, ce = lse − z[target]. The gradient of
(ce + z_weight·lse²)·scale with respect to r is (softmax·(1 + 2·z_weight·lse) − onehot)·scale·slope. It overwrites r.

The kernels are compute-bound. They use the base-2 exponential of the hardware, with one multiplication that converts
from units of the cap to base 2. They use no masks if the rows fill their tiles.

Legend: n rows of a slice, V vocabulary, R rows of a tile, BLOCK columns of a tile.
"""

from typing import no_type_check

import triton
import triton.language as tl

LN2, LOG2E = tl.constexpr(0.6931471805599453), tl.constexpr(1.4426950408889634)


@triton.jit
@no_type_check
def _cap(raw, cap, KIND: tl.constexpr):
    """Return (soft-capped logits / cap, slope). NaN stays NaN, as in PyTorch, so that divergence is detected."""
    if KIND == "poly":
        u = tl.clamp(raw * (1.0 / cap), -2.0, 2.0, propagate_nan=tl.PropagateNan.ALL)
        square = u * u
        unit = u * (1.0 + square * (square * (1.0 / 15.0) - 1.0 / 3.0))
        slope = tl.where(tl.abs(unit) < 1.0, 1.0 + square * (square * (1.0 / 3.0) - 1.0), 0.0)
        return tl.clamp(unit, -1.0, 1.0, propagate_nan=tl.PropagateNan.ALL), slope
    elif KIND == "tanh":
        # tanh(u) = 1 − 2/(1 + e^{2u}) is ±1 if the exponential overflows or underflows.
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
    raw, bias, targets, ce, lse, partials,
    n, V, cap, inv_temperature, scale, two_z_weight,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, BOUNDED: tl.constexpr, WITH_GRAD: tl.constexpr, FULL: tl.constexpr,
    R: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Compute the losses of R whole rows at a time, with one read and, if WITH_GRAD, one write of the logits.

    The column sums of the gradient (the bias gradient) stay in registers and end as one row of `partials`.

    Arguments: `two_z_weight`: 2·z_weight; BOUNDED: the logits are small, so the maximum is not subtracted before the
    exponential; FULL: R is 1 and V is BLOCK.
    """
    col_1V = tl.arange(0, BLOCK)[None, :]
    bias_1V = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        bias_1V = tl.load(bias + col_1V, mask=col_1V < V, other=0.0).to(tl.float32)
    sums_RV = tl.zeros((R, BLOCK), tl.float32)
    inv_temperature *= cap * LOG2E
    for first in tl.range(tl.program_id(0) * R, n, tl.num_programs(0) * R, num_stages=STAGES):
        row_R = first + tl.arange(0, R)
        valid_R = row_R < n
        row_at_R = raw + row_R.to(tl.int64) * V
        at_RV = row_at_R[:, None] + col_1V
        inside_RV = valid_R[:, None] & (col_1V < V)
        target_R = tl.load(targets + row_R, mask=valid_R, other=0).to(tl.int32)
        bias_R = tl.zeros((R,), tl.float32)
        if HAS_BIAS:
            bias_R = tl.load(bias + target_R).to(tl.float32)
        target_z_R, _ = _load(row_at_R + target_R, bias_R, valid_R, cap, KIND)
        z_RV, slope_RV = _load(at_RV, bias_1V, inside_RV, cap, KIND, FULL)
        z_RV *= inv_temperature
        if WITH_GRAD and R > 1:
            # Several warps read the target's logit before one warp overwrites it. With R = 1, the row sum synchronizes.
            tl.debug_barrier()
        max_R = tl.zeros((R,), tl.float32)
        if not BOUNDED:
            # A row past the end has no logits; use 0 as its maximum.
            max_R = tl.where(valid_R, tl.max(tl.where(inside_RV, z_RV, float("-inf")), axis=1), 0.0)
            z_RV -= max_R[:, None]
        e_RV = tl.exp2(z_RV)
        if not FULL:
            e_RV = tl.where(inside_RV, e_RV, 0.0)
        total_R = tl.where(valid_R, tl.sum(e_RV, axis=1), 1.0)
        lse_R = tl.log(total_R) + max_R * LN2
        tl.store(ce + row_R, lse_R - target_z_R * inv_temperature * LN2, mask=valid_R)
        tl.store(lse + row_R, lse_R, mask=valid_R)
        if WITH_GRAD:
            weight_R = tl.where(valid_R, scale * (1.0 + two_z_weight * lse_R) / total_R, 0.0)
            # A row past the end has no target.
            target_R = tl.where(valid_R, target_R, -1)
            onehot_RV = tl.where(col_1V == target_R[:, None], scale, 0.0)
            grad_RV = (e_RV * weight_R[:, None] - onehot_RV) * slope_RV
            if FULL:
                tl.store(at_RV, grad_RV)
            else:
                tl.store(at_RV, grad_RV, mask=inside_RV)
            sums_RV += grad_RV
    if WITH_GRAD:
        at_V = tl.program_id(0).to(tl.int64) * V + tl.arange(0, BLOCK)
        tl.store(partials + at_V, tl.sum(sums_RV, axis=0), mask=tl.arange(0, BLOCK) < V)


@triton.jit
@no_type_check
def _finite(top):
    """Return the value to subtract before the exponential: the maximum, or 0 if it is −∞."""
    return tl.where(top == float("-inf"), 0.0, top)


@triton.jit
@no_type_check
def logsumexp_kernel(
    raw, bias, targets, ce, lse,
    V, cap, inv_temperature, KIND: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compute ce and lse of one row that is longer than a tile, block by block."""
    row = tl.program_id(0).to(tl.int64)
    target = tl.load(targets + row)
    inv_temperature *= cap * LOG2E
    max_V = tl.full((BLOCK,), float("-inf"), tl.float32)
    total_V = tl.zeros((BLOCK,), tl.float32)
    target_z_V = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, V, BLOCK):
        col_V = start + tl.arange(0, BLOCK)
        inside_V = col_V < V
        bias_V = tl.zeros((BLOCK,), tl.float32)
        if HAS_BIAS:
            bias_V = tl.load(bias + col_V, mask=inside_V, other=0.0).to(tl.float32)
        z_V, _ = _load(raw + row * V + col_V, bias_V, inside_V, cap, KIND)
        z_V *= inv_temperature
        target_z_V += tl.where(col_V == target, z_V, 0.0)
        # Each lane has its own running maximum.
        new_max_V = tl.where(inside_V, tl.maximum(max_V, z_V, propagate_nan=tl.PropagateNan.ALL), max_V)
        base_V = _finite(new_max_V)
        total_V = total_V * tl.exp2(max_V - base_V) + tl.where(inside_V, tl.exp2(z_V - base_V), 0.0)
        max_V = new_max_V
    top = _finite(tl.max(max_V, axis=0))
    value = top * LN2 + tl.log(tl.sum(total_V * tl.exp2(max_V - top), axis=0))
    tl.store(ce + row, value - tl.sum(target_z_V, axis=0) * LN2)
    tl.store(lse + row, value)


@triton.jit
@no_type_check
def gradient_kernel(
    raw, bias, targets, lse, partials,
    n, V, cap, scale, two_z_weight,
    KIND: tl.constexpr, HAS_BIAS: tl.constexpr, R: tl.constexpr, BLOCK: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Overwrite BLOCK columns of `raw` with the gradient, R rows at a time, and write their sums to `partials`."""
    col_1V = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK))[None, :]
    bias_1V = tl.zeros((1, BLOCK), tl.float32)
    if HAS_BIAS:
        bias_1V = tl.load(bias + col_1V, mask=col_1V < V, other=0.0).to(tl.float32)
    sums_RV = tl.zeros((R, BLOCK), tl.float32)
    for first in tl.range(tl.program_id(1) * R, n, tl.num_programs(1) * R, num_stages=STAGES):
        row_R = first + tl.arange(0, R)
        valid_R = row_R < n
        at_RV = raw + row_R.to(tl.int64)[:, None] * V + col_1V
        inside_RV = valid_R[:, None] & (col_1V < V)
        target_R = tl.load(targets + row_R, mask=valid_R, other=0).to(tl.int32)
        lse_R = tl.load(lse + row_R, mask=valid_R, other=0.0)
        unit_RV, slope_RV = _load(at_RV, bias_1V, inside_RV, cap, KIND)
        weight_R = scale * (1.0 + two_z_weight * lse_R)
        grad_RV = tl.exp(cap * unit_RV - lse_R[:, None]) * weight_R[:, None]
        grad_RV = (grad_RV - tl.where(col_1V == target_R[:, None], scale, 0.0)) * slope_RV
        tl.store(at_RV, grad_RV, mask=inside_RV)
        sums_RV += tl.where(valid_R[:, None], grad_RV, 0.0)
    col_V = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(partials + tl.program_id(1).to(tl.int64) * V + col_V, tl.sum(sums_RV, axis=0), mask=col_V < V)
