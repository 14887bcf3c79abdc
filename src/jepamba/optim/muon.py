"""Muon (Jordan et al. 2024): each update is the momentum matrix, approximately orthogonalized.

`torch.optim.Muon` is the same optimizer without row normalization and batching; the tests compare with it.

Legend: R rows, C columns, S matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.distributed import SINGLE_PROCESS, World

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Quintic Newton–Schulz coefficients of Jordan et al. They bring singular values near 1 fast, but not exactly to 1."""
EPS = 1e-7


def orthogonalize(g_SRC: Float[Tensor, "S R C"], steps: int) -> Float[Tensor, "S R C"]:
    """Bring all singular values near 1 with `steps` Newton–Schulz iterations, in the dtype of g."""
    a, b, c = COEFFICIENTS
    tall = g_SRC.shape[1] > g_SRC.shape[2]
    x = g_SRC.transpose(1, 2) if tall else g_SRC
    # The iteration converges for singular values up to 1, and the Frobenius norm is at least the largest.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(EPS)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    out: Tensor = x.transpose(1, 2) if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Muon for 2-D parameters. It orthogonalizes matrices of equal shape as one batch.

    Every rank keeps the whole momentum, orthogonalizes some of the matrices, and all-gathers the rest.

    Nesterov momentum is an exponential moving average. With `row_norm`, each row is divided by its RMS before
    orthogonalization. The update is scaled by max(1, R/C)^½. Weight decay is decoupled. `momentum` and `lr` may change
    between steps; if a CUDA graph captures the step, they must be scalar tensors.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        *,
        lr: float | Tensor,
        momentum: float | Tensor,
        steps: int,
        row_norm: bool,
        weight_decay: float,
        compute_dtype: torch.dtype = torch.float32,
        world: World = SINGLE_PROCESS,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "steps": steps,
            "row_norm": row_norm,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.compute_dtype, self.world = compute_dtype, world
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient. `closure` is ignored."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            updates = self._nesterov_updates(params, group["momentum"])
            shares = assign_to_ranks(tuple((p.shape[0], p.shape[1]) for p in params), self.world.world_size)
            own = self._orthogonalized(updates, shares[self.world.rank], group)
            directions = own if self.world.world_size == 1 else self._all_gathered(params, own, shares)
            lr = group["lr"]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            for same in _by_shape(params, range(len(params))):
                rows, columns = params[same[0]].shape
                scaled = torch._foreach_mul([directions[i] for i in same], lr * max(1.0, rows / columns) ** 0.5)
                torch._foreach_sub_([params[i] for i in same], scaled)

    def _nesterov_updates(self, params: list[Tensor], momentum: float | Tensor) -> list[Tensor]:
        """Add the gradients to the momentum buffers and return the Nesterov updates."""
        buffers = [self._buffer(p) for p in params]
        updates = torch._foreach_mul([p.grad for p in params if p.grad is not None], 1 - momentum)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, updates)
        torch._foreach_add_(updates, torch._foreach_mul(buffers, momentum))
        return list(updates)

    def _orthogonalized(self, updates: list[Tensor], share: Sequence[int], group: dict[str, Any]) -> dict[int, Tensor]:
        """Orthogonalize the updates with the indices `share`. Returns them by index, in their own dtypes."""
        result: dict[int, Tensor] = {}
        for same in _by_shape(updates, share):
            update_SRC = torch.stack([updates[i] for i in same]).to(self.compute_dtype)
            if group["row_norm"]:
                update_SRC = update_SRC / update_SRC.square().mean(2, keepdim=True).sqrt().clamp_min(EPS)
            update_SRC = orthogonalize(update_SRC, group["steps"])
            result |= zip(same, update_SRC.to(updates[same[0]].dtype).unbind(), strict=True)
        return result

    def _all_gathered(
        self, params: list[Tensor], own: dict[int, Tensor], shares: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Exchange the updates of all ranks in one all-gather, in `compute_dtype`."""
        longest = max(sum(params[i].numel() for i in share) for share in shares)
        sent = torch.zeros(longest, dtype=self.compute_dtype, device=params[0].device)
        pieces = [own[i].reshape(-1).to(self.compute_dtype) for i in shares[self.world.rank]]
        if pieces:
            flat = torch.cat(pieces)
            sent[: len(flat)] = flat
        result: dict[int, Tensor] = {}
        for share, row in zip(shares, self.world.all_gather(sent), strict=True):
            sizes = [params[i].numel() for i in share]
            for i, piece in zip(share, row[: sum(sizes)].split(sizes), strict=True):
                result[i] = piece.view(params[i].shape).to(params[i].dtype)
        return result

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum"]
        return buffer


@lru_cache(8)
def assign_to_ranks(shapes: tuple[tuple[int, int], ...], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Return the indices of the matrices that each rank orthogonalizes.

    Greedy: in order of decreasing cost, each matrix goes to the rank with the least cost so far. A Newton–Schulz step
    of an n × m matrix, n ≤ m, takes two products of n·m·n multiplications and one of n·n·n.
    """
    cost = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(shapes)), key=lambda i: -cost[i]):
        min(shares, key=lambda share: sum(cost[i] for i in share)).append(index)
    return tuple(tuple(share) for share in shares)


def _by_shape(matrices: Sequence[Tensor], chosen: Iterable[int]) -> list[list[int]]:
    """Group the indices `chosen` by the shape and dtype of their matrices."""
    groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for i in chosen:
        groups.setdefault((matrices[i].shape, matrices[i].dtype), []).append(i)
    return list(groups.values())
