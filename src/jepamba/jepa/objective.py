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


class Shares(NamedTuple):
    """What part a batch is of that over which the losses are means: a step, on all ranks. Scalars where z lies."""

    token: Tensor
    """Its share of the targets."""
    pairs_K: Tensor
    """In the whole: positions with a target k further in the same document (see `document_pairs`)."""
    sigreg: Tensor
    """What the sample that it is tested in counts in the mean of the step's samples."""
    draws: Tensor
    """Size N of that sample."""


class Terms(NamedTuple):
    """The loss terms of one pass, unweighted, and their weighted sum. Of a part of the whole they are its parts of the
    whole's, but SIGReg, which is of a whole sample on each rank that has a part of it."""

    total: Tensor
    token: Tensor
    """ce + z_loss weight · z: what the next-token part of the gradient comes from."""
    ce: Tensor
    """Cross-entropy, nats per token (no gradient)."""
    z_loss: Tensor
    """Mean squared log-partition, before its weight (no gradient)."""
    jepa: Tensor
    sigreg: Tensor


def sigreg_lambda(config: Jepa, progress: float) -> float:
    """λ at this share of training: a linear ramp over the first `sigreg_ramp` of it, then `sigreg_weight`."""
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
    lam: Float[Tensor, ""],
    projections: Projections | None,
    state: State | None = None,
    *,
    shares: Shares | None = None,
    sums_SK2M: Float[Tensor, "S K 2 M"] | None = None,
    ranks: World = SINGLE_PROCESS,
) -> tuple[Terms, State]:
    """All loss terms of one batch, and the model's state after it; it starts from `state`, if that is given.

    `lam` is λ now, `drawn` what SIGReg drew (needed where its weight is not 0). A latent term with weight 0 is not
    computed and reads 0. `shares`: this batch is a part of a step; `total` is then what to add to the step's loss, and
    `lam` has to be λ times what the batch's sample counts. `sums_SK2M`: see `sigreg`.
    """
    h_BTD, state = model(tokens_BT, reset_BT, state)
    losses = model.loss(h_BTD, targets_BT, config.z_loss)
    if shares is not None:
        losses = Losses(*(value * shares.token for value in losses))
    zero = losses.ce.new_zeros(())
    jepa = statistic = zero
    if heads is not None:
        z_BTE = heads.project(h_BTD)
        if config.weight > 0:
            detach = config.detach_targets
            pairs_K = None if shares is None else shares.pairs_K
            jepa = prediction_error(heads.step, heads.steps, z_BTE, reset_BT, detach_targets=detach, pairs_K=pairs_K)
        if config.sigreg_weight > 0:
            assert projections is not None
            draws = None if shares is None else shares.draws
            statistic = sigreg(z_BTE, config, projections, ranks=ranks, draws=draws, sums_SK2M=sums_SK2M)
    total = config.ce_weight * losses.total + config.weight * jepa + lam * statistic
    if shares is not None:
        statistic = shares.sigreg * statistic
    return Terms(total, losses.total, losses.ce, losses.z, jepa, statistic), state
