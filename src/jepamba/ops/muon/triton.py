"""Launches of the Triton kernels of a Muon step: one kernel for all matrices of a shape.

Legend: R rows, C columns, S matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import on_device
from jepamba.ops.muon.pytorch import EPS
from jepamba.ops.muon.triton_kernels import apply_updates_kernel, nesterov_updates_kernel

BLOCK = 2048
"""Values of a program of the kernel that changes the parameters."""


def nesterov_updates_triton(
    grads: Sequence[Float[Tensor, "R C"]],
    buffers: Sequence[Float[Tensor, "R C"]],
    momentum: float | Float[Tensor, ""],
    row_norm: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "S R C"]:
    """See `muon.nesterov_updates`. The buffers are contiguous."""
    S, (R, C) = len(buffers), buffers[0].shape
    update_SRC = buffers[0].new_empty(S, R, C, dtype=dtype)
    # At most eight pieces per row, with four fp32 values (16 bytes) per thread.
    piece = max(32, triton.next_power_of_2(C) // 8)
    with on_device(update_SRC):
        nesterov_updates_kernel[(R, S)](
            tuple(grad.contiguous() for grad in grads), tuple(buffers), _on_device(momentum, update_SRC),
            update_SRC, EPS, ROW_NORM=row_norm, D=C, P=piece, num_warps=min(max(1, piece // 128), 16),
        )  # fmt: skip
    return update_SRC


def apply_updates_triton(
    params: Sequence[Float[Tensor, "R C"]],
    directions: Sequence[Float[Tensor, "R C"]],
    lr: float | Float[Tensor, ""],
    weight_decay: float,
) -> None:
    """See `muon.apply_updates`. The parameters are contiguous."""
    S, (R, C) = len(params), params[0].shape
    with on_device(params[0]):
        apply_updates_kernel[(triton.cdiv(R * C, BLOCK), S)](
            tuple(params), tuple(d.contiguous() for d in directions), _on_device(lr, params[0]),
            weight_decay, max(1.0, R / C) ** 0.5, R * C, BLOCK=BLOCK, num_warps=4,
        )  # fmt: skip


def _on_device(value: float | Tensor, like: Tensor) -> Tensor:
    """Return `value` in fp32 in the memory of the device, where a kernel loads it."""
    if isinstance(value, Tensor):
        return value.to(like.device, torch.float32)
    return torch.full((), value, device=like.device)
