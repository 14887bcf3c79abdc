"""One micro-batch: its loss terms, and its gradients added to what is there. On a GPU, a captured graph.

The graph works over tensors that stay where they are: inputs, weights, gradients, sums, and the state that is carried
from one micro-batch to the next.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.jepa import Draw, Terms, draw, objective
from jepamba.model import State
from jepamba.train.captured import Captured
from jepamba.train.session import Session


class Inputs(NamedTuple):
    """All that differs from one micro-batch to the next."""

    tokens_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor | None
    lam: Tensor
    """λ, a scalar."""
    draw: Draw | None
    """What SIGReg drew."""

    def tensors(self) -> list[Tensor]:
        """Every tensor, in order."""
        drawn = () if self.draw is None else self.draw
        return [value for value in (*self[:-1], *drawn) if value is not None]

    def moved(self, device: torch.device) -> Inputs:
        """The same on `device`."""
        drawn = self.draw
        if drawn is not None:
            chosen = None if drawn.chosen is None else _sent(drawn.chosen, device)
            drawn = Draw(_sent(drawn.directions_EM, device), chosen)
        return Inputs(
            _sent(self.tokens_BT, device),
            _sent(self.targets_BT, device),
            None if self.reset_BT is None else _sent(self.reset_BT, device),
            _sent(self.lam, device),
            drawn,
        )


def inputs_of(session: Session, batch: Batch, lam: float, index: int) -> Inputs:
    """The inputs of one micro-batch, on the CPU; `index` numbers micro-batches over the run."""
    run = session.run
    drawn = None
    if session.heads is not None and run.jepa.sigreg_weight > 0:
        drawn = draw(run.jepa, run.model.dim, (len(batch.inputs_BT), run.data.sequence), run.train.seed, index)
    reset = batch.reset_BT if run.data.reset else None
    return Inputs(batch.inputs_BT, batch.targets_BT, reset, torch.tensor(lam), drawn)


def _sent(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`, by a copy that need not be waited for."""
    return value if device.type == "cpu" else value.pin_memory().to(device, non_blocking=True)


def terms_of(session: Session, inputs: Inputs) -> tuple[Terms, State]:
    """The loss terms of one micro-batch whose inputs lie on the session's device, and the model's state after it."""
    with session.place.autocast():
        return objective(session.model, session.heads, session.run.jepa, *inputs, session.carried)


class MicroPass:
    """Adds the gradients and the loss terms of micro-batches up, each divided by how many there are in a step."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sums = torch.zeros(len(Terms._fields), device=session.place.device)
        self.share = session.run.train.tokens_per_micro / session.run.train.tokens_per_step
        self.captures = session.place.device.type == "cuda" and session.run.train.graph
        self.inputs: Inputs | None = None
        self.norm = torch.zeros(1, device=session.place.device)
        """The norm of all gradients together, before the clip."""
        self.run = Captured(self._run, self.captures)
        self.clip = Captured(self._clip, self.captures)
        """Scales all gradients so that their norm is at most `optim.clip`."""
        self.update = Captured(session.optimizers.step, self.captures)
        self.settling: dict[tuple[bool, tuple[str, ...]], Captured] = {}
        """By whether the grids are seen, and the widths of the integer ones."""

    def settle(self) -> None:
        """Compute the weights of the step's passes, once for all its micro-batches."""
        model, dtype = self.session.model, self.session.place.dtype
        grids = model.quantized, model.quant.widths
        if grids not in self.settling:
            self.settling[grids] = Captured(lambda: model.settle(dtype), self.captures)
        self.settling[grids]()

    def __call__(self, inputs: Inputs) -> None:
        """Add one micro-batch."""
        if self.inputs is None or not self.captures:
            self.inputs = inputs.moved(self.session.place.device)
        else:
            # Into the tensors that the graph reads.
            for there, here in zip(self.inputs.tensors(), inputs.tensors(), strict=True):
                there.copy_(here.pin_memory(), non_blocking=True)
        self.run()

    def _run(self) -> None:
        assert self.inputs is not None
        terms, after = terms_of(self.session, self.inputs)
        (terms.total * self.share).backward()
        self.session.carry(after)
        self.sums += torch.stack([term.detach().float() for term in terms]) * self.share

    def _clip(self) -> None:
        limit = self.session.run.optim.clip
        parameters = self.session.parameters()
        self.norm.copy_(torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf")))
