"""Muon (Jordan et al. 2024): momentum whose matrices are replaced by their nearest orthogonal ones.

`torch.optim.Muon` is the same optimizer without row normalisation and batching, and the oracle in the tests.

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
"""Quintic Newton–Schulz coefficients of Jordan et al.: fast towards singular values near 1, not exactly 1."""
EPS = 1e-7


def orthogonalize(g_SRC: Float[Tensor, "S R C"], steps: int) -> Float[Tensor, "S R C"]:
    """The matrices with their singular values pushed to about 1 by `steps` Newton–Schulz iterations, in g's dtype."""
    a, b, c = COEFFICIENTS
    tall = g_SRC.shape[1] > g_SRC.shape[2]
    x = g_SRC.transpose(1, 2) if tall else g_SRC
    # The iteration converges for singular values up to 1; the Frobenius norm bounds the largest.
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(EPS)
    for _ in range(steps):
        gram = x @ x.transpose(1, 2)
        x = a * x + torch.baddbmm(b * gram, gram, gram, alpha=c) @ x
    out: Tensor = x.transpose(1, 2) if tall else x
    return out


class Muon(torch.optim.Optimizer):
    """Muon over 2-D parameters; matrices of one shape are orthogonalised together, those of a step by all ranks.

    Every rank keeps the whole momentum, orthogonalises its share of the matrices, and gets the others' from them.

    Nesterov momentum as a running average; with `row_norm` each row of the update is divided by its RMS first; the
    update is scaled by max(1, R/C)^½; weight decay is decoupled. `momentum` and `lr` may change between steps; where a
    step is captured as a CUDA graph they are scalar tensors, which the graph reads.
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
        """One update of every parameter that has a gradient; there is no closure to re-evaluate."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            fresh = self._nesterov(params, group["momentum"])
            shares = assign_to_ranks(tuple((p.shape[0], p.shape[1]) for p in params), self.world.world_size)
            own = self._orthogonal(fresh, shares[self.world.rank], group)
            directions = own if self.world.world_size == 1 else self._gathered(params, own, shares)
            lr = group["lr"]
            torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
            for same in _by_shape(params, range(len(params))):
                rows, columns = params[same[0]].shape
                scaled = torch._foreach_mul([directions[i] for i in same], lr * max(1.0, rows / columns) ** 0.5)
                torch._foreach_sub_([params[i] for i in same], scaled)

    def _nesterov(self, params: list[Tensor], momentum: float | Tensor) -> list[Tensor]:
        """The momentum moves on by the gradients; what Nesterov makes of both."""
        buffers = [self._buffer(p) for p in params]
        fresh = torch._foreach_mul([p.grad for p in params if p.grad is not None], 1 - momentum)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, fresh)
        torch._foreach_add_(fresh, torch._foreach_mul(buffers, momentum))
        return list(fresh)

    def _orthogonal(self, fresh: list[Tensor], share: Sequence[int], group: dict[str, Any]) -> dict[int, Tensor]:
        """Those of a share, each orthogonalised, in the dtype of its parameter; equal shapes together."""
        found: dict[int, Tensor] = {}
        for same in _by_shape(fresh, share):
            update_SRC = torch.stack([fresh[i] for i in same]).to(self.compute_dtype)
            if group["row_norm"]:
                update_SRC = update_SRC / update_SRC.square().mean(2, keepdim=True).sqrt().clamp_min(EPS)
            update_SRC = orthogonalize(update_SRC, group["steps"])
            found |= zip(same, update_SRC.to(fresh[same[0]].dtype).unbind(), strict=True)
        return found

    def _gathered(
        self, params: list[Tensor], own: dict[int, Tensor], shares: Sequence[Sequence[int]]
    ) -> dict[int, Tensor]:
        """Every rank's share, in one go, in the precision in which they were made."""
        longest = max(sum(params[i].numel() for i in share) for share in shares)
        sent = torch.zeros(longest, dtype=self.compute_dtype, device=params[0].device)
        parts = [own[i].reshape(-1).to(self.compute_dtype) for i in shares[self.world.rank]]
        if parts:
            flat = torch.cat(parts)
            sent[: len(flat)] = flat
        found: dict[int, Tensor] = {}
        for share, row in zip(shares, self.world.all_gather(sent), strict=True):
            sizes = [params[i].numel() for i in share]
            for i, part in zip(share, row[: sum(sizes)].split(sizes), strict=True):
                found[i] = part.view(params[i].shape).to(params[i].dtype)
        return found

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum"]
        return buffer


@lru_cache(8)
def assign_to_ranks(shapes: tuple[tuple[int, int], ...], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Which matrices each rank orthogonalises: the costliest first, each to the rank that has the least to do.

    A Newton–Schulz step of a matrix of n × m, n ≤ m, multiplies n·m·n twice and n·n·n once.
    """
    cost = [min(shape) ** 2 * (2 * max(shape) + min(shape)) for shape in shapes]
    shares: list[list[int]] = [[] for _ in range(ranks)]
    for index in sorted(range(len(shapes)), key=lambda i: -cost[i]):
        min(shares, key=lambda share: sum(cost[i] for i in share)).append(index)
    return tuple(tuple(share) for share in shares)


def _by_shape(matrices: Sequence[Tensor], chosen: Iterable[int]) -> list[list[int]]:
    """The chosen ones' indices, those of one shape and dtype together."""
    groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for i in chosen:
        groups.setdefault((matrices[i].shape, matrices[i].dtype), []).append(i)
    return list(groups.values())
