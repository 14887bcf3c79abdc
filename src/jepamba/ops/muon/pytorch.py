"""A Muon step in plain PyTorch: the CPU path, and in float64 the reference. Its orthogonalization is also the GPU's.

Legend: R rows, C columns, S matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton–Schulz coefficients of Jordan et al. They bring singular values near 1 fast, but not exactly to 1."""
EPS = 1e-7
"""Lower bound of what a row or a matrix is divided by."""


def nesterov_updates_torch(
    grads: Sequence[Float[Tensor, "R C"]],
    buffers: Sequence[Float[Tensor, "R C"]],
    momentum: float | Float[Tensor, ""],
    row_norm: bool,
    dtype: torch.dtype,
) -> Float[Tensor, "S R C"]:
    """See `muon.nesterov_updates`."""
    updates = torch._foreach_mul(list(grads), 1 - momentum)
    torch._foreach_mul_(list(buffers), momentum)
    torch._foreach_add_(list(buffers), updates)
    torch._foreach_add_(updates, torch._foreach_mul(list(buffers), momentum))
    update_SRC = torch.stack(list(updates)).to(dtype)
    if row_norm:
        update_SRC = update_SRC / update_SRC.square().mean(2, keepdim=True).sqrt().clamp_min(EPS)
    return update_SRC


def orthogonalize_torch(update_SRC: Float[Tensor, "S R C"], steps: int) -> Float[Tensor, "S R C"]:
    """See `muon.orthogonalize`. An iteration is three products and no other pass over x. Returns a contiguous tensor.

    a·x is a part of the last product, as a·I in its other factor: `torch.baddbmm(x, polynomial, x, beta=a)` would first
    copy x into its result. In bf16 this is also closer to float64 than adding a·x, which rounds more often.
    """
    a, b, c = COEFFICIENTS
    tall = update_SRC.shape[1] > update_SRC.shape[2]
    x = _normalized(update_SRC)
    for _ in range(steps):
        gram = x.mT @ x if tall else x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        polynomial.diagonal(dim1=1, dim2=2).add_(a)
        x = x @ polynomial if tall else polynomial @ x
    return x


def apply_updates_torch(
    params: Sequence[Float[Tensor, "R C"]],
    directions: Sequence[Float[Tensor, "R C"]],
    lr: float | Float[Tensor, ""],
    weight_decay: float,
) -> None:
    """See `muon.apply_updates`."""
    rows, columns = params[0].shape
    torch._foreach_mul_(list(params), 1 - lr * weight_decay)
    scaled = torch._foreach_mul([d.to(params[0].dtype) for d in directions], lr * max(1.0, rows / columns) ** 0.5)
    torch._foreach_sub_(list(params), scaled)


def _normalized(x: Tensor) -> Tensor:
    """Divide each matrix by its Frobenius norm, which is at least its largest singular value: the iteration converges
    for singular values up to 1."""
    norm_S11: Tensor = x.norm(dim=(1, 2), keepdim=True)
    return x / norm_S11.clamp_min(EPS)
