"""One micro-batch: its loss terms, and its gradients added to what is there. On a GPU, a captured graph.

Legend: S samples of SIGReg, K its knots, M its directions; B, T as everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from jepamba.jepa import Terms, objective, sigreg_sums
from jepamba.model import State
from jepamba.train.captured import Captured
from jepamba.train.inputs import Inputs, StepInputs, sent
from jepamba.train.session import Session


def terms_of(session: Session, inputs: Inputs, sums_SK2M: Tensor | None = None) -> tuple[Terms, State]:
    """The loss terms of one micro-batch whose inputs lie on the session's device, and the model's state after it."""
    tokens_BT, targets_BT, reset_BT, lam, projections, shares, _ = inputs
    with session.place.autocast():
        return objective(
            session.model,
            session.heads,
            session.run.jepa,
            tokens_BT,
            targets_BT,
            reset_BT,
            lam,
            projections,
            session.carried,
            shares=shares,
            sums_SK2M=sums_SK2M,
            ranks=session.ranks,
        )


def add_gradients(loss: Tensor, leaves: list[Tensor]) -> None:
    """Add the gradients of `loss` to what the `leaves` have, as `backward` would, but many in one launch."""
    there, fresh = list[Tensor](), list[Tensor]()
    for leaf, grad in zip(leaves, torch.autograd.grad(loss, leaves, allow_unused=True), strict=True):
        if grad is None:
            continue
        if leaf.grad is None:
            leaf.grad = grad.to(leaf.grad_dtype or grad.dtype, copy=True, memory_format=torch.contiguous_format)
        else:
            if grad.stride() != leaf.grad.stride():
                # One pair with unlike strides, and _foreach_add_ adds all the pairs one by one.
                grad = torch.empty_like(leaf.grad, dtype=grad.dtype).copy_(grad)
            there.append(leaf.grad)
            fresh.append(grad)
    if there:
        torch._foreach_add_(there, fresh)


class MicroPass:
    """Adds the gradients and the loss terms of micro-batches up, each weighed by its share of the step; and what
    follows them, the clip and the update. On a GPU each of these is a replayed graph."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sums = torch.zeros(len(Terms._fields), device=session.place.device)
        self.captures = session.place.device.type == "cuda" and session.run.train.graph
        self.norm = torch.zeros(1, device=session.place.device)
        """The norm of all gradients together, before the clip."""
        self.sample_SK2M: Tensor | None = None
        """With `sigreg_sample = "step"`: the sums of cosines and sines over the step."""
        pool = torch.cuda.graph_pool_handle() if self.captures else None
        self._pass = Fed(self._run, session.place.device, self.captures, pool)
        self._look = Fed(self._run_look, session.place.device, self.captures, pool)
        self.clip = Captured(self._clip, self.captures)
        """Scales all gradients so that their norm is at most `optim.grad_clip`."""
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

    def __call__(self, step: StepInputs) -> None:
        """Add all of a step's micro-batches."""
        jepa = self.session.run.jepa
        if self.session.heads is not None and jepa.sigreg_weight > 0 and jepa.sigreg_sample == "step":
            self._find_sample(step)
        for inputs in step:
            self._pass(inputs)

    def release(self) -> None:
        """Give all graphs and their memory back, when there is no next step."""
        for captured in (self.clip, self.update, *self.settling.values()):
            captured.release()
        self._pass.release()
        self._look.release()

    def _run(self, inputs: Inputs) -> None:
        terms, after = terms_of(self.session, inputs, self.sample_SK2M)
        add_gradients(terms.total, self.session.leaves())
        self.session.carry(after)
        self.sums += torch.stack([term.detach().float() for term in terms])

    def _find_sample(self, step: StepInputs) -> None:
        """The sums of the step's whole sample, which the passes that follow pull towards those of a Gaussian."""
        jepa, session = self.session.run.jepa, self.session
        if self.sample_SK2M is None:
            projections = next(iter(step)).projections
            assert projections is not None
            of = 1
            if jepa.sigreg_pool == "timestep":
                of = session.run.data.seq_len if projections.chosen is None else len(projections.chosen)
            shape = (of, jepa.sigreg_knots, 2, jepa.sigreg_projections)
            self.sample_SK2M = torch.zeros(shape, device=session.place.device)
        self.sample_SK2M.zero_()
        before = [[value.clone() for value in state] for state in session.carried or []]
        for inputs in step:
            self._look(inputs)
        session.ranks.all_reduce_(self.sample_SK2M)
        for state, kept in zip(session.carried or [], before, strict=True):
            for value, old in zip(state, kept, strict=True):
                value.copy_(old)

    @torch.no_grad()
    def _run_look(self, inputs: Inputs) -> None:
        session = self.session
        assert self.sample_SK2M is not None
        assert session.heads is not None
        assert inputs.projections is not None
        with session.place.autocast():
            h_BTD, after = session.model(inputs.tokens_BT, inputs.reset_BT, session.carried)
            z_BTE = session.heads.project(h_BTD)
        self.sample_SK2M += sigreg_sums(z_BTE, session.run.jepa, inputs.projections)
        session.carry(after)

    def _clip(self) -> None:
        limit = self.session.run.optim.grad_clip
        parameters = self.session.parameters()
        self.norm.copy_(torch.nn.utils.clip_grad_norm_(parameters, limit if limit > 0 else float("inf")))


class Fed:
    """Captured work on one micro-batch after another: a graph for each size of a pass, of which there are two at most.

    Not for each size of this rank's micro-batches: with the sums over the ranks in it, they all have to record a graph
    in the same pass.
    """

    def __init__(self, work: Callable[[Inputs], None], device: torch.device, captures: bool, pool: Any) -> None:
        self.work, self.device, self.captures, self.pool = work, device, captures, pool
        self._graphs: dict[int, tuple[Captured, Inputs]] = {}

    def __call__(self, inputs: Inputs) -> None:
        """Do the work on `inputs`."""
        if not self.captures:
            self.work(inputs.mapped(lambda value: sent(value, self.device)))
            return
        if inputs.windows not in self._graphs:
            # Copies: what comes later is written over them.
            own = inputs.mapped(lambda value: sent(value, self.device).clone())
            self._graphs[inputs.windows] = Captured(partial(self.work, own), True, self.pool), own
        captured, own = self._graphs[inputs.windows]
        for there, here in zip(own.tensors(), inputs.tensors(), strict=True):
            there.copy_(sent(here, self.device), non_blocking=True)
        captured()

    def release(self) -> None:
        """Give the graphs and their memory back."""
        for captured, _ in self._graphs.values():
            captured.release()
        self._graphs.clear()
