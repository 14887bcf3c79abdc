"""Muon (Jordan et al. 2024): each update is the momentum matrix, approximately orthogonalized.

`torch.optim.Muon` is the same optimizer without row normalization and batching; the tests compare with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.ops.muon import apply_updates, nesterov_updates, orthogonalize
from jepamba.optim.base import Optimizer


class Muon(Optimizer):
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
        super().__init__([{"params": params}], defaults)
        self.compute_dtype, self.world = compute_dtype, world
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            shares = assign_to_ranks(tuple((p.shape[0], p.shape[1]) for p in params), self.world.world_size)
            own = self._own_directions(params, shares[self.world.rank], group)
            directions = own if self.world.world_size == 1 else self._all_gathered(params, own, shares)
            for same in _by_shape(params, range(len(params))):
                apply_updates(
                    [params[i] for i in same], [directions[i] for i in same], group["lr"], group["weight_decay"]
                )

    def _own_directions(self, params: list[Tensor], share: Sequence[int], group: dict[str, Any]) -> dict[int, Tensor]:
        """Update the momentum of all parameters, and orthogonalize the updates of those with the indices `share`.

        Returns the directions by index, in `compute_dtype`.
        """
        own: dict[int, Tensor] = {}
        others = [i for i in range(len(params)) if i not in share]
        for same in _by_shape(params, [*share, *others]):
            grads = [grad for i in same if (grad := params[i].grad) is not None]
            buffers = [self._buffer(params[i]) for i in same]
            update_SRC = nesterov_updates(grads, buffers, group["momentum"], group["row_norm"], self.compute_dtype)
            # Those of this rank are the first of their shape.
            chosen = [i for i in same if i in share]
            if chosen:
                own |= zip(chosen, orthogonalize(update_SRC[: len(chosen)], group["steps"]).unbind(), strict=True)
        return own

    def _all_gathered(
        self, params: list[Tensor], own: dict[int, Tensor], shares: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Exchange the directions of all ranks in one all-gather, in `compute_dtype`."""
        longest = max(sum(params[i].numel() for i in share) for share in shares)
        sent = torch.zeros(longest, dtype=self.compute_dtype, device=params[0].device)
        pieces = [own[i].reshape(-1) for i in shares[self.world.rank]]
        if pieces:
            flat = torch.cat(pieces)
            sent[: len(flat)] = flat
        result: dict[int, Tensor] = {}
        for share, row in zip(shares, self.world.all_gather(sent), strict=True):
            sizes = [params[i].numel() for i in share]
            for i, piece in zip(share, row[: sum(sizes)].split(sizes), strict=True):
                result[i] = piece.view(params[i].shape)
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
