# mypy: disable-error-code="no-untyped-def,no-untyped-call,misc,untyped-decorator,valid-type,type-arg"
"""The sum of what the programs of a kernel left: one part each, added up in a fixed order."""

from typing import no_type_check

import torch
import triton
import triton.language as tl
from torch import Tensor

from jepamba.ops.dispatch import on_device

MOST = 2048
"""Parts that are added in one go; more go to PyTorch."""
COLUMNS = 8
"""Columns of a program: 32 bytes of each part, the least that memory gives at once."""


@triton.jit
@no_type_check
def _sum_kernel(parts, out, P, M, BLOCK: tl.constexpr, COLUMNS: tl.constexpr):
    p = tl.arange(0, BLOCK)
    m = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    inside = (p < P)[:, None] & (m < M)[None, :]
    values = tl.load(parts + p[:, None] * M + m[None, :], mask=inside, other=0.0)
    tl.store(out + m, tl.sum(values, axis=0), mask=m < M)


def sum_parts(parts: Tensor) -> Tensor:
    """Σ over the first dimension of contiguous fp32 `parts` (P, …)."""
    P, M = len(parts), parts.shape[1:].numel()
    if P == 0 or P > MOST or parts.numel() >= 1 << 31:
        return parts.sum(0)
    out = torch.empty_like(parts[0])
    with on_device(parts):
        _sum_kernel[(triton.cdiv(M, COLUMNS),)](
            parts, out, P, M, BLOCK=triton.next_power_of_2(P), COLUMNS=COLUMNS, num_warps=8
        )
    return out
