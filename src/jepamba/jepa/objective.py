"""The training loss: cross-entropy with z-loss, latent prediction, SIGReg and VICReg, logged separately.

    total = ce_weight·(CE + z_loss·mean(logsumexp²)) + weight·MSE + λ·SIGReg + vicreg_weight·VICReg

Legend: B batch, T time, D d_model, V vocabulary, S samples of SIGReg, K roll-out steps (knots in SIGReg), M directions.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import NamedTuple, TypeVar

from jaxtyping import Bool, Float, Int
from torch import Tensor

from jepamba.config import Jepa
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.jepa.heads import JepaHeads, prediction_error
from jepamba.jepa.sigreg import Projections, sigreg
from jepamba.jepa.target_encoder import TargetEncoder
from jepamba.jepa.vicreg import vicreg
from jepamba.model import LanguageModel
from jepamba.ops.cross_entropy import Losses

_Value = TypeVar("_Value", float, Tensor)


class LatentWeights(NamedTuple):
    """The weights of the latent terms at a moment of training."""

    jepa: float
    """Weight of latent prediction."""
    sigreg: float
    """λ."""
    vicreg: float = 0.0
    """Weight of VICReg."""


NO_LATENT_WEIGHTS = LatentWeights(0.0, 0.0, 0.0)
"""The weights where no latent term is computed."""


class LossWeights(NamedTuple):
    """Weights that turn the losses of a micro-batch into its contribution to the step's mean over all micro-batches of
    all ranks. Scalars on the model's device."""

    tokens: Tensor
    """The micro-batch's fraction of the step's targets, with which its means are multiplied."""
    jepa: Tensor
    """The weight of latent prediction."""
    sigreg_lambda: Tensor
    """λ of the micro-batch's loss. It includes the factor `sigreg_share`, unless SIGReg's sample is the whole step."""
    vicreg: Tensor
    """The weight of VICReg, with the factor `sigreg_share`."""
    sigreg_share: Tensor
    """Weight of the micro-batch's SIGReg and VICReg in the logged mean."""
    pairs_K: Tensor | None = None
    """Pairs of the whole step at distance 1 … K (`document_pairs`). None: the micro-batch is the whole step."""
    sample_size: Tensor | None = None
    """Size N of SIGReg's sample over all ranks. None: the micro-batch is the whole sample."""


class LossTerms(NamedTuple):
    """The loss terms of a micro-batch. Their sums over the micro-batches of all ranks are the step's terms, except that
    `sigreg` and `vicreg`, and their parts of `total`, already have the global value on each rank."""

    total: Tensor
    """The weighted sum, to be differentiated."""
    token: Tensor
    """The next-token term: ce + z_loss weight · z."""
    ce: Tensor
    """Cross-entropy, nats per token (no gradient)."""
    z_loss: Tensor
    """Mean squared log-partition, unweighted (no gradient)."""
    jepa: Tensor
    sigreg: Tensor
    vicreg: Tensor


def weighted_terms(
    config: Jepa, latent: tuple[_Value, _Value, _Value], token: _Value, jepa: _Value, sigreg: _Value, vicreg: _Value
) -> dict[str, _Value]:
    """Return the summands of the loss: cross-entropy with z-loss and the latent terms, each with its weight.

    Training, the log and the gradient norms of the terms all use it.

    Arguments:
        latent: The weights of the latent terms, in the order of `LatentWeights`.
        Others: The unweighted terms, as in `LossTerms`.
    """
    jepa_weight, sigreg_weight, vicreg_weight = latent
    return {
        "ce": config.ce_weight * token,
        "jepa": jepa_weight * jepa,
        "sigreg": sigreg_weight * sigreg,
        "vicreg": vicreg_weight * vicreg,
    }


def latent_weights(config: Jepa, budget_fraction: float, factor: float = 1.0) -> LatentWeights | None:
    """Return the weights at `budget_fraction` of the budget; None if no latent term is to be computed from there on.

    λ rises linearly from 0 up to `sigreg_ramp`. With `anneal` all weights fall linearly to 0 at `until`.
    `factor` is a common factor of all of them (`balance`).
    """
    if not config.active or (config.until < 1 and budget_fraction >= config.until):
        return None
    scale = factor * (max(0.0, 1 - budget_fraction / config.until) if config.anneal else 1.0)
    ramp = min(1.0, budget_fraction / config.sigreg_ramp) if config.sigreg_ramp > 0 else 1.0
    return LatentWeights(scale * config.weight, scale * ramp * config.sigreg_weight, scale * config.vicreg_weight)


def compute_losses(
    model: LanguageModel,
    heads: JepaHeads | None,
    config: Jepa,
    tokens_BT: Int[Tensor, "B T"],
    targets_BT: Int[Tensor, "B T"],
    reset_BT: Bool[Tensor, "B T"] | None,
    weights: LossWeights,
    projections: Projections | None,
    *,
    target_encoder: TargetEncoder | None = None,
    sigreg_sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
    world: World = SINGLE_PROCESS,
) -> LossTerms:
    """Compute the loss terms of one micro-batch. A latent term with weight 0 is not computed and is 0.

    Arguments:
        heads: None: no latent term is computed.
        projections: Required where SIGReg's weight is not 0.
        target_encoder: What computes the prediction targets. None: the model and its heads.
        sigreg_sums_SK2M: See `sigreg`.
    """
    found, _ = model.activations(tokens_BT, reset_BT)
    losses = Losses(*(value * weights.tokens for value in model.loss(found.h_BTD, targets_BT, config.z_loss)))
    jepa = statistic = variances = losses.ce.new_zeros(())
    if heads is not None:
        z_BTE = heads.latents(found)
        if config.weight > 0:
            jepa = prediction_error(
                heads.step,
                config,
                z_BTE,
                reset_BT,
                action_BTD=heads.actions(found),
                pairs_K=weights.pairs_K,
                targets_BTE=None if target_encoder is None else target_encoder.latents(tokens_BT, reset_BT),
            )
        if config.sigreg_weight > 0:
            assert projections is not None
            statistic = sigreg(
                z_BTE, config, projections, world=world, sample_size=weights.sample_size, sums_SK2M=sigreg_sums_SK2M
            )
        if config.vicreg_weight > 0:
            variances = vicreg(z_BTE, world=world)
    latent = weights.jepa, weights.sigreg_lambda, weights.vicreg
    total = reduce(add, weighted_terms(config, latent, losses.total, jepa, statistic, variances).values())
    share = weights.sigreg_share
    return LossTerms(total, losses.total, losses.ce, losses.z, jepa, share * statistic, share * variances)
