"""The three operations of a Muon step: Nesterov momentum, orthogonalization, update of the parameters.

A learning rate or momentum that is a tensor is never read on the host, so a CUDA graph can capture all of them.

Legend: R rows, C columns, S matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.ops.dispatch import use_triton
from jepamba.ops.muon.pytorch import (
    apply_updates_torch,
    nesterov_updates_torch,
    orthogonalize_torch,
)

__all__ = ["apply_updates", "nesterov_updates", "orthogonalize"]


def nesterov_updates(
    grads: Sequence[Float[Tensor, "R C"]],
    buffers: Sequence[Float[Tensor, "R C"]],
    momentum: float | Float[Tensor, ""],
    row_norm: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "S R C"]:
    """Set each buffer to m·buffer + (1 − m)·grad, and return the updates (1 − m)·grad + m·buffer in `dtype`.

    With `row_norm`, each row of an update is divided by its root mean square.
    """
    if _use_triton(buffers):
        from jepamba.ops.muon.triton import nesterov_updates_triton

        return nesterov_updates_triton(grads, buffers, momentum, row_norm, dtype)
    return nesterov_updates_torch(grads, buffers, momentum, row_norm, dtype)


def orthogonalize(update_SRC: Float[Tensor, "S R C"], steps: int) -> Float[Tensor, "S R C"]:
    """Bring all singular values near 1 with `steps` Newton–Schulz iterations, in the dtype of the update."""
    return orthogonalize_torch(update_SRC, steps)


def apply_updates(
    params: Sequence[Float[Tensor, "R C"]],
    directions: Sequence[Float[Tensor, "R C"]],
    lr: float | Float[Tensor, ""],
    weight_decay: float,
) -> None:
    """Set each parameter p to p·(1 − lr·weight_decay) − lr·max(1, R/C)^½·direction."""
    if _use_triton(params):
        from jepamba.ops.muon.triton import apply_updates_triton

        apply_updates_triton(params, directions, lr, weight_decay)
    else:
        apply_updates_torch(params, directions, lr, weight_decay)


def _use_triton(changed: Sequence[Tensor]) -> bool:
    """Whether the kernels support the tensors that they change in place."""
    return all(use_triton(tensor) and tensor.is_contiguous() for tensor in changed)
