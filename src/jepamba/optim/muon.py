"""Muon (Jordan et al. 2024): momentum whose matrices are replaced by their nearest orthogonal ones.

`torch.optim.Muon` is the same optimizer without row normalisation and batching, and the oracle in the tests.

Legend: R rows, C columns, S matrices of one shape.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

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
    """Muon over 2-D parameters; matrices of one shape are orthogonalised together.

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
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "steps": steps,
            "row_norm": row_norm,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.compute_dtype = compute_dtype
        for group in self.param_groups:
            for p in group["params"]:
                if p.ndim != 2:
                    raise ValueError(f"Muon takes matrices, not a parameter of shape {tuple(p.shape)}")

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every parameter that has a gradient; there is no closure to re-evaluate."""
        for group in self.param_groups:
            by_shape: dict[tuple[torch.Size, torch.dtype], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    by_shape.setdefault((p.shape, p.dtype), []).append(p)
            for (shape, _), same in by_shape.items():
                self._update(same, shape[0], shape[1], group)

    def _update(self, params: list[Tensor], rows: int, columns: int, group: dict[str, Any]) -> None:
        momentum, lr = group["momentum"], group["lr"]
        buffers = [self._buffer(p) for p in params]
        fresh = torch._foreach_mul([p.grad for p in params if p.grad is not None], 1 - momentum)
        torch._foreach_mul_(buffers, momentum)
        torch._foreach_add_(buffers, fresh)
        torch._foreach_add_(fresh, torch._foreach_mul(buffers, momentum))
        update_SRC = torch.stack(fresh).to(self.compute_dtype)
        if group["row_norm"]:
            update_SRC = update_SRC / update_SRC.square().mean(2, keepdim=True).sqrt().clamp_min(EPS)
        update_SRC = orthogonalize(update_SRC, group["steps"]).to(params[0].dtype) * (
            lr * max(1.0, rows / columns) ** 0.5
        )
        torch._foreach_mul_(params, 1 - lr * group["weight_decay"])
        torch._foreach_sub_(params, list(update_SRC.unbind()))

    def _buffer(self, p: Tensor) -> Tensor:
        state = self.state[p]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(p)
        buffer: Tensor = state["momentum"]
        return buffer
