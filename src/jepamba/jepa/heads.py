"""Modules that only training uses: the projector h→z and the predictor of the next latents (LeWorldModel, arXiv
2603.19312).

Legend: B batch, T time, D d_model, E latent dimension (= D), F width of the predictor's input (E, or E + D), K roll-out
steps, M channels, N positions (= B·T), P positions of the predictor (T,
or every `stride`-th), S those of them with a target.
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
from jepamba.model import Activations
from jepamba.ops.dispatch import use_triton
from jepamba.ops.predictor import bias_gelu, shifted_error


class SequenceBatchNorm(nn.BatchNorm1d):
    """Batch normalization over all positions of all sequences, synchronized over the ranks.

    A forward pass without gradients does not update the running statistics, because a second pass over the same
    positions follows it.
    """

    def __init__(self, num_features: int, world: World = SINGLE_PROCESS, affine: bool = True) -> None:
        super().__init__(num_features, affine=affine)
        self.world = world

    def forward(self, x_BTM: Float[Tensor, "B T M"]) -> Float[Tensor, "B T M"]:
        """Normalize each of the M channels over B and T; with `affine`, then scale and shift it."""
        x_NM = x_BTM.flatten(0, 1)
        if self.training and self.world.world_size > 1:
            return self._synchronized(x_NM).view_as(x_BTM)
        if self.training and not torch.is_grad_enabled():
            return F.batch_norm(x_NM, None, None, self.weight, self.bias, True, 0.0, self.eps).view_as(x_BTM)
        return super().forward(x_NM).view_as(x_BTM)

    def _synchronized(self, x_NM: Tensor) -> Tensor:
        x32_NM = x_NM.float()
        count = torch.full((1,), len(x_NM), dtype=torch.float32, device=x_NM.device)
        sums = self.world.all_reduce(torch.cat([x32_NM.sum(0), count]))
        count = sums[-1].detach()
        mean_M = sums[:-1] / count
        # E[x²] − mean² would lose precision where the mean is far from 0.
        centred_NM = x32_NM - mean_M
        variance_M = self.world.all_reduce(centred_NM.square().sum(0)) / count
        if torch.is_grad_enabled():
            self._update_running_stats(mean_M.detach(), variance_M.detach() * (count / (count - 1)))
        normed_NM = centred_NM * torch.rsqrt(variance_M + self.eps)
        return (normed_NM * self.weight + self.bias if self.affine else normed_NM).to(x_NM.dtype)

    def _update_running_stats(self, mean_M: Tensor, variance_M: Tensor) -> None:
        buffers = dict(self.named_buffers())
        buffers["running_mean"].lerp_(mean_M, cast(float, self.momentum))
        buffers["running_var"].lerp_(variance_M, cast(float, self.momentum))
        buffers["num_batches_tracked"].add_(1)


def make_projection(kind: str, dim: int, world: World = SINGLE_PROCESS) -> nn.Module:
    """Build a module (…, dim) → (…, dim): bias-free linear, an MLP (hidden 2·dim) with LayerNorm or BatchNorm,
    BatchNorm alone and without weights, or the identity (`none`)."""
    if kind == "none":
        return nn.Identity()
    if kind == "batchnorm":
        return SequenceBatchNorm(dim, world, affine=False)
    if kind == "linear":
        return nn.Linear(dim, dim, bias=False)
    norm = nn.LayerNorm(2 * dim) if kind == "mlp-layernorm" else SequenceBatchNorm(2 * dim, world)
    return nn.Sequential(nn.Linear(dim, 2 * dim), norm, nn.GELU(), nn.Linear(2 * dim, dim))


class JepaHeads(nn.Module):
    """The projector, the predictor and the predictor's output projection. The artifact does not contain them."""

    def __init__(self, config: Jepa, d_model: int, world: World = SINGLE_PROCESS) -> None:
        super().__init__()
        self.config = config
        self.projector = make_projection(config.projector, d_model, world)
        hidden = config.predictor_mult * d_model
        inputs = 2 * d_model if config.action else d_model
        layers = [nn.Linear(inputs, hidden), nn.GELU(), nn.Linear(hidden, d_model)] if hidden else []
        self.predictor = nn.Sequential(*layers)
        # A prediction of a standardized latent has less variance than it; normalized, it could not be the mean.
        output_kind = "none" if config.projector == "batchnorm" or not hidden else config.projector
        self.pred_proj = make_projection(output_kind, d_model, world)
        if hidden:
            output = cast(nn.Linear, self.predictor[2])
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)

    def project(self, h_BTD: Float[Tensor, "B T D"]) -> Float[Tensor, "B T E"]:
        """Map the model's latents after `jepa.layer` blocks (0: h) to latents z."""
        return cast(Tensor, self.projector(h_BTD))

    def latents(self, activations: Activations) -> Float[Tensor, "B T E"]:
        """Return the latents z of a pass of the model."""
        return self.project(activations.after(self.config.layer))

    def actions(self, activations: Activations) -> Float[Tensor, "B T D"] | None:
        """Return what the predictor reads of each token: its embedding, as the first block reads it.

        With `jepa.target_tokens` = n it is the mean over the last n tokens. None without `jepa.action`.
        """
        return trailing_mean(activations.x0_BTD, self.config.target_tokens) if self.config.action else None

    def rollout(
        self, z_BTE: Float[Tensor, "B T E"], action_BTD: Float[Tensor, "B T D"] | None = None
    ) -> list[Float[Tensor, "B T E"]]:
        """Return [ẑ¹, …, ẑᴷ], where ẑᵏ at position t predicts z at t + k and is computed from ẑᵏ⁻¹.

        With `jepa.target_tokens` = n it predicts the mean of z from t + (k − 1)·n + 1 to t + k·n.

        Arguments:
            action_BTD: See `actions`. Step k reads it at t + k·n.
        """
        predictions = []
        for k in range(1, self.config.rollout_steps + 1):
            shift = k * self.config.target_tokens
            z_BTE = self.step(z_BTE, None if action_BTD is None else ahead(action_BTD, shift))
            predictions.append(z_BTE)
        return predictions

    def step(
        self, z_BTE: Float[Tensor, "B T E"], action_BTD: Float[Tensor, "B T D"] | None = None
    ) -> Float[Tensor, "B T E"]:
        """Predict the next target after `z_BTE`, which holds latents or earlier predictions.

        With `jepa.action`, `action_BTD` has the embedding of the token that leads there. It is concatenated to the
        latent, so that its columns of the first matrix are a linear encoder of the action. Without a predictor
        (`jepa.predictor_mult` = 0) the prediction is `z_BTE`.
        """
        if self.config.predictor_mult == 0:
            return z_BTE.clone()  # prediction and target must be two tensors
        input_BTF = z_BTE if action_BTD is None else torch.cat([z_BTE, action_BTD], -1)
        if use_triton(input_BTF):
            hidden, out = cast(nn.Linear, self.predictor[0]), cast(nn.Linear, self.predictor[2])
            z_next_BTE = out(bias_gelu(F.linear(input_BTF, hidden.weight), hidden.bias))
        else:
            z_next_BTE = self.predictor(input_BTF)
        return cast(Tensor, self.pred_proj(z_next_BTE))


def ahead(x_BTD: Float[Tensor, "B T D"], shift: int, stride: int = 1) -> Float[Tensor, "B P D"]:
    """Return x at t + `shift` for every `stride`-th position t from 0, and 0 where that lies beyond the end."""
    values_BSD = x_BTD[:, shift::stride]
    return F.pad(values_BSD, (0, 0, 0, -(-x_BTD.shape[1] // stride) - values_BSD.shape[1]))


def trailing_mean(x_BTD: Float[Tensor, "B T D"], count: int) -> Float[Tensor, "B T D"]:
    """Return for each position the mean of x over the last `count` positions, itself included.

    It is computed in fp32, or fp64 for fp64 inputs. At the first `count` − 1 positions the missing values count as 0.
    """
    if count == 1:
        return x_BTD
    sums_BTD = x_BTD.to(torch.promote_types(x_BTD.dtype, torch.float32)).cumsum(1)
    return ((sums_BTD - F.pad(sums_BTD[:, :-count], (0, 0, count, 0))) / count).to(x_BTD.dtype)


def prediction_error(
    step: Callable[[Tensor, Tensor | None], Tensor],
    config: Jepa,
    z_BTE: Float[Tensor, "B T E"],
    reset_BT: Bool[Tensor, "B T"] | None,
    *,
    action_BTD: Float[Tensor, "B T D"] | None = None,
    pairs_K: Float[Tensor, " K"] | None = None,
    targets_BTE: Float[Tensor, "B T E"] | None = None,
) -> Float[Tensor, ""]:
    """Return the mean over k = 1 … K of the mean squared error between `step` applied k times and z_{t+k}, fp32.

    K is `rollout_steps`. With `target_tokens` = n > 1 the target is the mean of z from t + (k − 1)·n + 1 to t + k·n.

    Positions are every `stride`-th from 0. Pairs of a position and a target with a reset between them lie in different
    documents and do not count.

    Arguments:
        step: Predicts the next target, as `JepaHeads.step`.
        action_BTD: See `JepaHeads.actions`.
        pairs_K: Number of pairs for each k that the squared errors are averaged over. None counts those of this batch;
            a micro-batch passes the counts of the whole step (`document_pairs`).
        targets_BTE: Latents of the same positions to predict instead of z (`TargetEncoder`).
    """
    stride, current_BPE = config.stride, z_BTE[:, :: config.stride]
    if targets_BTE is None:
        targets_BTE = z_BTE.detach() if config.detach_targets else z_BTE
    targets_BTE = trailing_mean(targets_BTE, config.target_tokens)
    same = _same_document_masks(config, (z_BTE.shape[0], z_BTE.shape[1]), reset_BT, z_BTE.device)
    errors = []
    for k, same_BS in enumerate(same, 1):
        pairs = same_BS.sum() if pairs_K is None else pairs_K[k - 1]
        shift = k * config.target_tokens
        without_target = current_BPE.shape[1] - same_BS.shape[1]
        weight_BP = F.pad(same_BS / (pairs.clamp_min(1) * z_BTE.shape[-1]), (0, without_target))
        predicted_BPE = step(current_BPE, None if action_BTD is None else ahead(action_BTD, shift, stride))
        if stride == 1:
            error, current_BPE, targets_BTE = shifted_error(predicted_BPE, targets_BTE, weight_BP, shift)
        else:
            error, current_BPE, _ = shifted_error(predicted_BPE, ahead(targets_BTE, shift, stride), weight_BP, 0)
        errors.append(error)
    return torch.stack(errors).mean()


def document_pairs(
    config: Jepa, shape: tuple[int, int], reset_BT: Bool[Tensor, "B T"] | None, device: torch.device
) -> Float[Tensor, " K"]:
    """Count, for k = 1 … K, the predictor's positions in a (B, T) batch whose target is in the same document."""
    return torch.stack([same_BS.sum() for same_BS in _same_document_masks(config, shape, reset_BT, device)])


def _same_document_masks(
    config: Jepa, shape: tuple[int, int], reset_BT: Tensor | None, device: torch.device
) -> Iterator[Tensor]:
    """Yield for each k a mask (B, S): 1 where positions t and t + k·n are in the same document, else 0.

    n is `target_tokens`, and t is every `stride`-th position below T − k·n.
    """
    document_BT = torch.zeros(shape, device=device) if reset_BT is None else reset_BT.cumsum(1)
    for k in range(1, config.rollout_steps + 1):
        shift = k * config.target_tokens
        yield (document_BT[:, : -shift : config.stride] == document_BT[:, shift :: config.stride]).float()
