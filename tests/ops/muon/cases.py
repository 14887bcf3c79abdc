"""A Muon step in float64, and matrices to try it on."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from jepamba.optim import Muon
from ops.compare import DEVICE, random

SHAPES = [(3, 5), (5, 3), (1, 7), (7, 1), (6, 6), (3, 130)]
"""Wide, tall and square; a width of several pieces of a row, the last of which is not full."""


def matrices(shape: tuple[int, int], seed: int) -> list[Tensor]:
    """Return three matrices of very different sizes. The last row of the last is 0."""
    found = [random(*shape, seed=seed + i) * 10.0 ** (3 * i - 3) for i in range(3)]
    found[2][-1] = 0
    return found


def exact_updates(
    grads: list[Tensor], buffers: list[Tensor], momentum: float, row_norm: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """Return the new buffers and the updates, in float64 on the CPU."""
    means, updates = [], []
    for grad, buffer in zip(grads, buffers, strict=True):
        g = grad.double().cpu()
        mean = momentum * buffer.double().cpu() + (1 - momentum) * g
        update = (1 - momentum) * g + momentum * mean
        if row_norm:
            update = update / update.square().mean(1, keepdim=True).sqrt().clamp_min(1e-7)
        means.append(mean)
        updates.append(update)
    return means, updates


def exact_direction(update: Tensor, steps: int) -> Tensor:
    """Return U f(S) Vᵀ, with the quintic f applied `steps` times to the singular values, in float64 on the CPU."""
    U, S, Vh = torch.linalg.svd(update.double().cpu(), full_matrices=False)
    S = S / S.square().sum(-1, keepdim=True).sqrt().clamp_min(1e-7)
    for _ in range(steps):
        S = 3.4445 * S - 4.7750 * S**3 + 2.0315 * S**5
    return (U * S.unsqueeze(-2)) @ Vh


def exact_parameter(p: Tensor, direction: Tensor, lr: float, weight_decay: float) -> Tensor:
    """Return the changed parameter in float64 on the CPU."""
    rows, columns = p.shape
    scale = math.sqrt(max(1.0, rows / columns))
    return p.double().cpu() * (1 - lr * weight_decay) - lr * scale * direction.double().cpu()


class Trained:
    """Parameters, their optimizer, and a truth in float64 that takes the same steps."""

    def __init__(self, shapes: list[tuple[int, int]], *, as_tensors: bool, row_norm: bool, dtype: torch.dtype) -> None:
        def scheduled(value: float) -> float | Tensor:
            return torch.tensor(value, device=DEVICE) if as_tensors else value

        self.params = [nn.Parameter(random(*shape, seed=i)) for i, shape in enumerate(shapes)]
        self.row_norm = row_norm
        self.muon = Muon(
            self.params,
            lr=scheduled(0.0),
            momentum=scheduled(0.0),
            steps=3,
            row_norm=row_norm,
            weight_decay=0.04,
            compute_dtype=dtype,
        )
        self.start = [p.detach().double().cpu() for p in self.params]
        self.truth = list(self.start)
        self.buffers = [torch.zeros_like(value) for value in self.truth]

    def prepare(self, step: int) -> None:
        """Set gradients, learning rate and momentum of step `step`, in place where they are tensors, and change the
        truth."""
        lr, momentum = 0.02 / (step + 1), 0.85 + 0.02 * step
        for name, value in (("lr", lr), ("momentum", momentum)):
            current = self.muon.param_groups[0][name]
            if isinstance(current, Tensor):
                current.fill_(value)
            else:
                self.muon.param_groups[0][name] = value
        for i, p in enumerate(self.params):
            grad = random(*p.shape, seed=100 * step + i)
            if p.grad is None:
                p.grad = grad
            else:
                p.grad.copy_(grad)
            (self.buffers[i],), (update,) = exact_updates([grad], [self.buffers[i]], momentum, self.row_norm)
            self.truth[i] = exact_parameter(self.truth[i], exact_direction(update, 3), lr, 0.04)

    def errors(self) -> list[float]:
        """Return the error of each parameter, relative to its change since the start."""
        return [
            ((p.detach().double().cpu() - truth).norm() / (truth - start).norm()).item()
            for p, truth, start in zip(self.params, self.truth, self.start, strict=True)
        ]
