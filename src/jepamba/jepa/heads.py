"""The parts that exist in training alone: the projector h→z and the predictor of the next latents.

Legend: B batch, T time, D model width, E latent width (= D), K roll-out steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from jepamba.config import Jepa
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.ops.predictor import bias_gelu, shifted_error


class PositionNorm(nn.BatchNorm1d):
    """Batch normalisation over every position of every sequence, those of the other ranks' micro-batches included.

    The running statistics follow the passes that have a gradient: one without is a look at what will be passed again.
    """

    def __init__(self, width: int, ranks: World = SINGLE_PROCESS) -> None:
        super().__init__(width)
        self.ranks = ranks

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Each of the M channels with mean 0 and variance 1 over B and T, then scaled and shifted."""
        x_NM = x_BTM.flatten(0, 1)
        if self.training and self.ranks.world_size > 1:
            return self._over_ranks(x_NM).view_as(x_BTM)
        if self.training and not torch.is_grad_enabled():
            return F.batch_norm(x_NM, None, None, self.weight, self.bias, True, 0.0, self.eps).view_as(x_BTM)
        return super().forward(x_NM).view_as(x_BTM)

    def _over_ranks(self, x_NM: Tensor) -> Tensor:
        wide_NM = x_NM.float()
        count = torch.full((1,), len(x_NM), dtype=torch.float32, device=x_NM.device)
        sums = self.ranks.all_reduce(torch.cat([wide_NM.sum(0), count]))
        count = sums[-1].detach()
        mean_M = sums[:-1] / count
        # About the mean, not about 0: a mean that is far from 0 would cost the variance its digits.
        centred_NM = wide_NM - mean_M
        variance_M = self.ranks.all_reduce(centred_NM.square().sum(0)) / count
        if torch.is_grad_enabled():
            self._follow(mean_M.detach(), variance_M.detach() * (count / (count - 1)))
        return (centred_NM * torch.rsqrt(variance_M + self.eps) * self.weight + self.bias).to(x_NM.dtype)

    def _follow(self, mean_M: Tensor, variance_M: Tensor) -> None:
        buffers = dict(self.named_buffers())
        buffers["running_mean"].lerp_(mean_M, cast(float, self.momentum))
        buffers["running_var"].lerp_(variance_M, cast(float, self.momentum))
        buffers["num_batches_tracked"].add_(1)


def projection(kind: str, width: int, ranks: World = SINGLE_PROCESS) -> nn.Module:
    """A map of latents to latents: bias-free linear, or an MLP (hidden 2·width) with LayerNorm or BatchNorm."""
    if kind == "linear":
        return nn.Linear(width, width, bias=False)
    norm = nn.LayerNorm(2 * width) if kind == "mlp-layernorm" else PositionNorm(2 * width, ranks)
    return nn.Sequential(nn.Linear(width, 2 * width), norm, nn.GELU(), nn.Linear(2 * width, width))


class JepaHeads(nn.Module):
    """Projector, predictor and the predictor's projection; none of it reaches the artifact."""

    def __init__(self, config: Jepa, width: int, ranks: World = SINGLE_PROCESS) -> None:
        super().__init__()
        hidden = config.predictor_mult * width
        self.steps = config.rollout_steps
        self.projector = projection(config.projector, width, ranks)
        self.predictor = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.pred_proj = projection(config.projector, width, ranks)
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
    pairs_K: Float[Tensor, " K"] | None = None,
) -> Float[Tensor, ""]:
    """Mean over k = 1 … `steps` of the mean squared error between `step` applied k times and z_{t+k}, in fp32.

    A target in another document than its position (a reset lies between them) is left out: it cannot be predicted.
    `pairs_K`: what the sums over such pairs are divided by, where this batch is a part of what the mean is over.
    """
    current_BTE, targets_BTE = z_BTE, z_BTE.detach() if detach_targets else z_BTE
    same = _in_one_document((z_BTE.shape[0], z_BTE.shape[1]), reset_BT, steps, z_BTE.device)
    errors = []
    for k, same_BS in enumerate(same, 1):
        pairs = same_BS.sum() if pairs_K is None else pairs_K[k - 1]
        weight_BT = F.pad(same_BS / (pairs.clamp_min(1) * z_BTE.shape[-1]), (0, k))
        error, current_BTE, targets_BTE = shifted_error(step(current_BTE), targets_BTE, weight_BT, k)
        errors.append(error)
    return torch.stack(errors).mean()


def document_pairs(
    shape: tuple[int, int], reset_BT: Bool[Tensor, "B T"] | None, steps: int, device: torch.device
) -> Float[Tensor, " K"]:
    """For k = 1 … `steps`, how many positions of a batch of `shape` have a target k further in the same document."""
    return torch.stack([same_BS.sum() for same_BS in _in_one_document(shape, reset_BT, steps, device)])


def _in_one_document(
    shape: tuple[int, int], reset_BT: Tensor | None, steps: int, device: torch.device
) -> Iterator[Tensor]:
    """For each k, which positions t lie in one document with t + k, as 0 and 1: (B, T − k)."""
    document_BT = torch.zeros(shape, device=device) if reset_BT is None else reset_BT.cumsum(1)
    for k in range(1, steps + 1):
        yield (document_BT[:, :-k] == document_BT[:, k:]).float()
