"""The size of the terms that the SSD operator and its gradients add up, by which a sum that cancels is judged."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepamba.ops.ssd import ssd_reference


class Terms(NamedTuple):
    """The results of `ssd` and its gradients, each the sum of the absolute values of its terms, in float64."""

    y: Tensor
    state: Tensor
    x: Tensor
    dt: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor
    initial_state: Tensor


def absolute_terms(args: list[Tensor], reset: Tensor | None, weights: list[Tensor], chunk_size: int) -> Terms:
    """Return the terms of `ssd(*args, reset)` for the gradients `weights` of y and of the final state.

    dt > 0 and the decays are positive. So with absolute values of everything else, all terms of the recurrence are
    positive. dt gets terms of two signs: as the step size of an input, and in a decay. Two factors of 1 separate them.
    """
    x, dt, A, B, C, D, initial = (value.detach().double() for value in args)
    input_BTH, decay_BTH = torch.ones_like(dt).requires_grad_(), torch.ones_like(dt).requires_grad_()
    leaves = [value.abs().requires_grad_() for value in (x, B, C, D, initial)]
    heads = x.shape[2] // B.shape[2]
    B_BTHN, C_BTHN = (value.repeat_interleave(heads, 2) for value in leaves[1:3])
    # The recurrence multiplies dt and B in the input: a factor of dt that B loses again is one of the decay alone.
    B_BTHN = B_BTHN * (input_BTH / decay_BTH).unsqueeze(-1)
    results = ssd_reference(leaves[0], dt * decay_BTH, A, B_BTHN, C_BTHN, leaves[3], leaves[4], reset)
    grads_out = [weight.double().abs() for weight in weights]
    dx, dB, dC, dD, dinitial, by_input, by_decay = torch.autograd.grad(
        results, [*leaves, input_BTH, decay_BTH], grads_out
    )
    by_decay = by_decay.abs()
    # A chunk multiplies by exp(total_i − total_j), where total is the cumulative sum of dt·A. Each input adds its term
    # to the gradient of total_i and subtracts it from that of total_j: its rounding is left, times the chunk's steps.
    steps_BH = torch.stack([part.sum(1) for part in dt.split(chunk_size, 1)]).amax(0)
    dA = (by_decay.sum(1) / A.abs() + by_input.sum(1) * steps_BH).sum(0)
    return Terms(
        *(value.detach() for value in results),
        dx, (by_input + by_decay) / dt, dA, dB, dC, dD, dinitial,
    )  # fmt: skip
