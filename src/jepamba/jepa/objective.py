"""The loss: cross-entropy with z-loss, latent prediction, and SIGReg, each kept apart for the log.

    total = ce_weight·(CE + z_loss·mean(logsumexp²)) + weight·MSE + λ·SIGReg

Legend: B batch, T time, D model width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepamba.config import Jepa
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.jepa.heads import JepaHeads, prediction_error
from jepamba.jepa.sigreg import Projections, sigreg
from jepamba.model import LanguageModel, State
from jepamba.ops.cross_entropy import Losses


class LossWeights(NamedTuple):
    """The weight of each loss term of a micro-batch in its step, whose losses are means over all micro-batches of all
    ranks. Scalars on the model's device."""

    tokens: Tensor
    """The micro-batch's share of the step's targets."""
    sigreg_lambda: Tensor
    """λ in the micro-batch's loss: times `sigreg_share`, unless the sample is the whole step's."""
    sigreg_share: Tensor
    """Share of the logged statistic."""
    pairs_K: Tensor | None = None
    """For k = 1 … K, positions of the step with a target k further in the same document (`document_pairs`); None: those
    of the micro-batch, which is the whole step."""
    samples: Tensor | None = None
    """Size N of SIGReg's sample over all ranks; None: the micro-batch is the whole sample."""


class LossTerms(NamedTuple):
    """The loss terms of a micro-batch. Summed over the micro-batches of all ranks they are the step's; but SIGReg,
    a statistic of one sample on all ranks, has the same value on each of them."""

    total: Tensor
    """The weighted sum: what the gradient is taken of."""
    token: Tensor
    """ce + z_loss weight · z: the next-token part of `total`."""
    ce: Tensor
    """Cross-entropy, nats per token (no gradient)."""
    z_loss: Tensor
    """Mean squared log-partition, before its weight (no gradient)."""
    jepa: Tensor
    sigreg: Tensor


def sigreg_lambda(config: Jepa, progress: float) -> float:
    """λ at this share of the budget: a linear ramp over the first `sigreg_ramp` of it, then `sigreg_weight`."""
    if config.sigreg_ramp == 0:
        return config.sigreg_weight
    return config.sigreg_weight * min(1.0, progress / config.sigreg_ramp)


def objective(
    model: LanguageModel,
    heads: JepaHeads | None,
    config: Jepa,
    tokens_BT: Int[Tensor, "B T"],
    targets_BT: Int[Tensor, "B T"],
    reset_BT: Bool[Tensor, "B T"] | None,
    weights: LossWeights,
    projections: Projections | None,
    state: State | None = None,
    *,
    sigreg_sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
    world: World = SINGLE_PROCESS,
) -> tuple[LossTerms, State]:
    """The loss terms of one micro-batch, and the model's state after it; it starts in `state`, if that is given.

    `projections` is needed where SIGReg's weight is not 0. A latent term with weight 0 is not computed and reads 0.
    `sigreg_sums_SK2M`: see `sigreg`.
    """
    h_BTD, state = model(tokens_BT, reset_BT, state)
    losses = Losses(*(value * weights.tokens for value in model.loss(h_BTD, targets_BT, config.z_loss)))
    jepa = statistic = losses.ce.new_zeros(())
    if heads is not None:
        z_BTE = heads.project(h_BTD)
        if config.weight > 0:
            jepa = prediction_error(
                heads.step,
                heads.steps,
                z_BTE,
                reset_BT,
                detach_targets=config.detach_targets,
                pairs_K=weights.pairs_K,
            )
        if config.sigreg_weight > 0:
            assert projections is not None
            statistic = sigreg(
                z_BTE, config, projections, world=world, draws=weights.samples, sums_SK2M=sigreg_sums_SK2M
            )
    total = config.ce_weight * losses.total + config.weight * jepa + weights.sigreg_lambda * statistic
    return LossTerms(total, losses.total, losses.ce, losses.z, jepa, weights.sigreg_share * statistic), state
