"""Measurements on the next windows that do not advance the run: gradient norms of loss terms."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from jepamba.jepa import NO_LATENT_WEIGHTS, LatentWeights, latent_weights, weighted_terms
from jepamba.train.microbatch import MicroBatches, loss_terms
from jepamba.train.state import TrainState


def term_gradients(state: TrainState, budget_fraction: float) -> dict[str, float]:
    """The gradient norm of each weighted loss term with respect to the kept parameters.

    It is measured on the first pass of the next step (a micro-batch on each rank). The data position does not move, and
    no gradient is kept.
    """
    state.set_training_mode(budget_fraction)
    latent = latent_weights(state.run.jepa, budget_fraction, state.latent_factor)
    with _next_terms(state, latent) as weighted:
        return {f"grad_{name}": _gradient_norm(state, term) for name, term in weighted.items()}


def balance_latent_terms(state: TrainState, budget_fraction: float) -> None:
    """Set `state.latent_factor` so that the latent terms have the gradient norm that `jepa.balance` asks for.

    It is measured as by `term_gradients`, with the weights before `jepa.anneal` lowers them. A norm that is 0 or not
    finite leaves the factor as it is.
    """
    jepa = state.run.jepa
    unannealed = latent_weights(replace(jepa, anneal=False), budget_fraction)
    if unannealed is None:
        return
    state.set_training_mode(budget_fraction)
    with _next_terms(state, unannealed) as weighted:
        ce, *latent = weighted.values()
        norms = _gradient_norm(state, ce), _gradient_norm(state, torch.stack(latent).sum())
    if all(0 < norm < math.inf for norm in norms):
        state.latent_factor = jepa.balance * norms[0] / norms[1]


@contextmanager
def _next_terms(state: TrainState, latent: LatentWeights | None) -> Iterator[dict[str, Tensor]]:
    """The weighted loss terms of the first pass of the next step. Buffers are as before at the end of the context."""
    buffers = {name: value.clone() for name, value in state.modules.named_buffers()}
    (micro,) = MicroBatches(state, state.peek_windows(), latent, passes=1)
    terms = loss_terms(state, micro.to(state.device))
    jepa, sigreg, vicreg = (terms.total.new_tensor(weight) for weight in latent or NO_LATENT_WEIGHTS)
    yield weighted_terms(state.run.jepa, (jepa, sigreg, vicreg), terms.token, terms.jepa, terms.sigreg, terms.vicreg)
    for name, value in state.modules.named_buffers():
        value.copy_(buffers[name])


def _gradient_norm(state: TrainState, term: Tensor) -> float:
    """The norm of the term's gradient with respect to the kept parameters, summed over the ranks."""
    if not term.requires_grad:
        return 0.0
    parameters = [p for p in state.model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(term, parameters, retain_graph=True, allow_unused=True)
    present = [grad for grad in grads if grad is not None]
    state.world.all_reduce_each_(present)
    return float(sum(grad.double().square().sum().item() for grad in present) ** 0.5)
