"""The parts that exist in training alone: the projector h→z and the predictor of the next latents (spec section 2).

Legend: B batch, T time, D model width, E latent width (= D), K roll-out steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepamba.config import Jepa
from jepamba.fused.latents import bias_gelu, shifted_error


class PositionNorm(nn.BatchNorm1d):
    """Batch normalisation over every position of every sequence."""

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Each of the M channels with mean 0 and variance 1 over B and T, then scaled and shifted."""
        return super().forward(x_BTM.flatten(0, 1)).view_as(x_BTM)


def projection(kind: str, width: int) -> nn.Module:
    """A map of latents to latents: bias-free linear, or an MLP (hidden 2·width) with LayerNorm or BatchNorm."""
    if kind == "linear":
        return nn.Linear(width, width, bias=False)
    norm = nn.LayerNorm(2 * width) if kind == "mlp-layernorm" else PositionNorm(2 * width)
    return nn.Sequential(nn.Linear(width, 2 * width), norm, nn.GELU(), nn.Linear(2 * width, width))


class JepaHeads(nn.Module):
    """Projector, predictor and the predictor's projection; none of it reaches the artifact."""

    def __init__(self, config: Jepa, width: int) -> None:
        super().__init__()
        hidden = config.predictor_mult * width
        self.steps = config.steps
        self.projector = projection(config.projector, width)
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.pred_proj = projection(config.projector, width)
        output = cast(nn.Linear, self.predictor[2])
        nn.init.zeros_(output.weight)
        nn.init.zeros_(output.bias)

    def project(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """The latents z that are predicted and tested."""
        return cast(Tensor, self.projector(h_BTD))

    def rollout(self, z_BTE: Float[Tensor, "B T E"]) -> list[Float[Tensor, "B T E"]]:
        """[ẑ¹, …, ẑᴷ]: position t of ẑᵏ predicts z at t + k. Each step reads the one before it."""
        predictions = []
        for _ in range(self.steps):
            z_BTE = self.step(z_BTE)
            predictions.append(z_BTE)
        return predictions

    def step(self, z_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, "B T E"]:
        """One step of the roll-out: from z, or what was predicted for it, to one token further."""
        if z_BTE.is_cuda:
            into, out = cast(nn.Linear, self.predictor[0]), cast(nn.Linear, self.predictor[2])
            ahead_BTE = out(bias_gelu(F.linear(z_BTE, into.weight), into.bias))
        else:
            ahead_BTE = self.predictor(z_BTE)
        return cast(Tensor, self.pred_proj(ahead_BTE))


def prediction_error(
    step: Callable[[Tensor], Tensor],
    steps: int,
    z_BTE: Float[Tensor, "B T E"],
    reset_BT: Bool[Tensor, "B T"] | None,
    *,
    detach_targets: bool,
) -> Float[Tensor, ""]:
    """Mean over k = 1 … `steps` of the mean squared error between `step` applied k times and z_{t+k}, in fp32.

    A target in another document than its position (a reset lies between them) is left out: it cannot be predicted.
    """
    current_BTE, targets_BTE = z_BTE, z_BTE.detach() if detach_targets else z_BTE
    document_BT = torch.zeros(z_BTE.shape[:2], device=z_BTE.device) if reset_BT is None else reset_BT.cumsum(1)
    errors = []
    for k in range(1, steps + 1):
        same_BS = (document_BT[:, :-k] == document_BT[:, k:]).float()
        weight_BT = F.pad(same_BS / (same_BS.sum().clamp_min(1) * z_BTE.shape[-1]), (0, k))
        error, current_BTE, targets_BTE = shifted_error(step(current_BTE), targets_BTE, weight_BT, k)
        errors.append(error)
    return torch.stack(errors).mean()


def within_sequence_share(z_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, ""]:
    """Share of z's variance that lies within sequences: near 0, z is a constant of its sequence (spec section 6, 6)."""
    z_BTE = z_BTE.float()
    total = F.mse_loss(z_BTE, z_BTE.mean((0, 1), keepdim=True).expand_as(z_BTE))
    within = F.mse_loss(z_BTE, z_BTE.mean(1, keepdim=True).expand_as(z_BTE))
    return within / total.clamp_min(1e-12)
