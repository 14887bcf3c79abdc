# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
# ruff: noqa: RUF005 (Triton joins tuples with +)
"""Triton kernels of a Muon step. Each reads each input once and writes each output once. Arithmetic is fp32.

A launch processes all matrices of a shape. Their pointers are a tuple of arguments, from which a program selects one,
so no table of addresses must be copied to the device.

Legend: D columns of a matrix, in pieces of P columns.
"""

from typing import no_type_check

import triton
import triton.language as tl

from jepamba.ops.norms.triton_kernels import load_row, store_row


@triton.jit
@no_type_check
def _select(pointers, index):
    """Return pointers[index] for an index that is known at run time."""
    selected = pointers[0]
    for i in tl.static_range(1, len(pointers)):
        selected = tl.where(index == i, pointers[i], selected)
    return selected


@triton.jit
@no_type_check
def nesterov_updates_kernel(
    grads, buffers, momentum, updates, eps, ROW_NORM: tl.constexpr, D: tl.constexpr, P: tl.constexpr
):  # fmt: skip
    """buffer = m·buffer + (1 − m)·grad, update = (1 − m)·grad + m·buffer, divided by its RMS: one row of one matrix."""
    row, matrix = tl.program_id(0), tl.program_id(1)
    m = tl.load(momentum)
    buffer = _select(buffers, matrix)
    grad_CP, buffer_CP = load_row(_select(grads, matrix), row, D, D, P), load_row(buffer, row, D, D, P)
    update_CP = ()
    squares_P = tl.zeros((P,), tl.float32)
    for i in tl.static_range(triton.cdiv(D, P)):
        weighted = (1.0 - m) * grad_CP[i].to(tl.float32)
        mean = m * buffer_CP[i].to(tl.float32) + weighted
        store_row(buffer, row, D, i, mean, D, P)
        update = weighted + m * mean
        squares_P += update * update
        update_CP = update_CP + (update,)
    scale = 1.0
    if ROW_NORM:
        rms = tl.sqrt(tl.sum(squares_P, axis=0) / D)
        # NaN stays NaN, as in PyTorch.
        scale = 1.0 / tl.maximum(rms, eps, propagate_nan=tl.PropagateNan.ALL)
    slot = tl.cast(matrix, tl.int64) * tl.num_programs(0) + row
    for i in tl.static_range(triton.cdiv(D, P)):
        store_row(updates, slot, D, i, update_CP[i] * scale, D, P)


@triton.jit
@no_type_check
def apply_updates_kernel(parameters, directions, lr, weight_decay, scale, size, BLOCK: tl.constexpr):
    """param = param·(1 − lr·weight_decay) − lr·scale·direction: BLOCK values of one matrix of `size` values."""
    # The first argument is not `params`, which is a variable of Triton's launcher.
    matrix = tl.program_id(1)
    param, direction = _select(parameters, matrix), _select(directions, matrix)
    at = tl.cast(tl.program_id(0), tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    rate = tl.load(lr)
    value = tl.load(param + at, mask=inside, other=0.0).to(tl.float32)
    step = tl.load(direction + at, mask=inside, other=0.0).to(tl.float32)
    value = value * (1.0 - rate * weight_decay) - rate * scale * step
    tl.store(param + at, value.to(param.dtype.element_ty), mask=inside)
