# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""Adds the partial sums of the programs of a kernel in a fixed order, so that the result is deterministic."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepamba.ops.dispatch import on_device

MAX_PARTIALS = 2048
"""Maximum number of partial sums for the kernel. PyTorch adds more than these."""
COLUMNS = 8
"""Columns of a program: 32 bytes per row, the smallest memory transaction."""


@triton.jit
@no_type_check
def _sum_kernel(partials, out, P, M, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    p = tl.arange(0, BLOCK)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (p < P)[:, None] & (m < M)[None, :]
    values = tl.load(partials + p[:, None] * M + m[None, :], mask=inside, other=0.0)
    tl.store(out + m, tl.sum(values, axis=0), mask=m < M)


def sum_partials(partials: Tensor) -> Tensor:
    """Sum contiguous fp32 `partials` (P, …) over the first dimension."""
    P, M = len(partials), partials.shape[1:].numel()
    if P == 0 or P > MAX_PARTIALS or partials.numel() >= 1 << 31:
        return partials.sum(0)
    out = torch.empty_like(partials[0])
    with on_device(partials):
        _sum_kernel[(triton.cdiv(M, COLUMNS),)](
            partials, out, P, M, BLOCK=triton.next_power_of_2(P), COLUMNS=COLUMNS, num_warps=8
        )
    return out
