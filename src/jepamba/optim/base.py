"""What Muon and AdamW have in common: groups of parameters with settings, and a state for each parameter."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw


class Optimizer:
    """The part of `torch.optim.Optimizer` that training uses.

    The first `torch.optim.Optimizer` of a process imports PyTorch's compiler, which takes as long as PyTorch itself.

    Arguments: `groups`: parameters as `params` and settings that differ from `defaults`.
    """

    def __init__(self, groups: Iterable[dict[str, Any]], defaults: dict[str, Any]) -> None:
        self.defaults = defaults
        self.param_groups = [{**defaults, **group, "params": list(group["params"])} for group in groups]
        self.state = defaultdict[Tensor, dict[str, Any]](dict)

    def zero_grad(self) -> None:
        """Zero the gradients in place."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if grads:
            torch._foreach_zero_(grads)


class AdamW(Optimizer):
    """`torch.optim.AdamW` with its fused implementation and the same results. With `capturable`, a CUDA graph can
    capture `step`, and learning rates can be tensors.
    """

    def __init__(
        self,
        groups: Sequence[dict[str, Any]],
        *,
        lr: float | Tensor,
        betas: tuple[float, float],
        eps: float,
        capturable: bool,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps})
        self.capturable = capturable

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            states = [self._state(p) for p in params]
            adamw(
                params,
                [p.grad for p in params],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                [state["step"] for state in states],
                fused=True,
                capturable=self.capturable,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )

    def _state(self, p: Tensor) -> dict[str, Any]:
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=p.device)
            state |= {key: torch.zeros_like(p) for key in ("exp_avg", "exp_avg_sq")}
        return state
