"""Measurements on the next windows that do not advance the run: input magnitudes for quantizers, gradient norms."""

from __future__ import annotations

import torch
from torch import Tensor

from jepamba.jepa import NO_LATENT_WEIGHTS, latent_weights, weighted_terms
from jepamba.train.microbatch import MicroBatches, loss_terms, to_device
from jepamba.train.state import TrainState

CALIBRATE_EVERY = 50
"""Steps between calibrations with `quant.scale = "hessian"`; each costs a forward pass."""


@torch.no_grad()
def calibrate_inputs(state: TrainState) -> None:
    """Measure the mean square of each input of every matrix, with which `quant.scale = "hessian"` weights errors.

    Rank 0 measures on the next `train.tokens_per_micro` tokens and broadcasts. The data position is restored.
    """
    model, device = state.model, state.device
    if state.world.is_rank_zero:
        position = state.loader.state()
        batch = state.loader.next(state.run.train.tokens_per_micro // state.run.data.seq_len)
        state.loader.restore(position)
        with model.calibrate_inputs(), state.device_config.autocast():
            reset_BT = to_device(batch.reset_BT, device) if state.run.data.reset else None
            model(to_device(batch.inputs_BT, device), reset_BT)
    state.world.broadcast_(model.buffers())


def term_gradients(state: TrainState, budget_fraction: float) -> dict[str, float]:
    """The gradient norm of each weighted loss term with respect to the kept parameters.

    It is measured on the first pass of the next step (a micro-batch on each rank). The data position does not move, and
    no gradient is kept.
    """
    run = state.run
    state.set_training_mode(budget_fraction)
    latent = latent_weights(run.jepa, budget_fraction)
    buffers = {name: value.clone() for name, value in state.modules.named_buffers()}
    (micro,) = MicroBatches(state, state.peek_windows(), latent, passes=1)
    if not micro.continues:
        state.carry(None)
    terms, _ = loss_terms(state, micro.to(state.device))
    jepa, sigreg, vicreg = (terms.total.new_tensor(weight) for weight in latent or NO_LATENT_WEIGHTS)
    weighted = weighted_terms(run.jepa, (jepa, sigreg, vicreg), terms.token, terms.jepa, terms.sigreg, terms.vicreg)
    norms = {f"grad_{name}": _gradient_norm(state, term) for name, term in weighted.items()}
    for name, value in state.modules.named_buffers():
        value.copy_(buffers[name])
    return norms


def _gradient_norm(state: TrainState, term: Tensor) -> float:
    """The norm of the term's gradient with respect to the kept parameters, summed over the ranks."""
    if not term.requires_grad:
        return 0.0
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    present = [grad for grad in grads if grad is not None]
    state.world.all_reduce_each_(present)
    return float(sum(grad.double().square().sum().item() for grad in present) ** 0.5)
