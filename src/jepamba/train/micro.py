"""One micro-batch: its loss terms, and its gradients added to what is there. On a GPU, a captured graph.

Legend: S samples of SIGReg, K its knots, M its directions; B, T as everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor

from jepamba.jepa import Terms, objective, sigreg_sums
from jepamba.model import State
from jepamba.train.captured import Captured
from jepamba.train.inputs import Inputs, StepInputs
from jepamba.train.session import Session


def terms_of(session: Session, inputs: Inputs, sums_SK2M: Tensor | None = None) -> tuple[Terms, State]:
    """The loss terms of one micro-batch whose inputs lie on the session's device, and the model's state after it."""
    tokens_BT, targets_BT, reset_BT, lam, drawn, shares = inputs
    with session.place.autocast():
        return objective(
            session.model,
            session.heads,
            session.run.jepa,
            tokens_BT,
            targets_BT,
            reset_BT,
            lam,
            drawn,
            session.carried,
            shares=shares,
            sums_SK2M=sums_SK2M,
            ranks=session.ranks,
        )


class MicroPass:
    """Adds the gradients and the loss terms of micro-batches up, each weighed by its share of the step.

    On a GPU each is a replayed graph; of every size of micro-batch one (there are two at most).
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.sums = torch.zeros(len(Terms._fields), device=session.place.device)
        self.captures = session.place.device.type == "cuda" and session.run.train.graph
        self._passes = Captured(self._run, session.place.device, self.captures)
        self._looks = Captured(self._look, session.place.device, self.captures)
        self.sample_SK2M: Tensor | None = None
        """With `sigreg_sample = "step"`: the sums of cosines and sines over the step."""
        self.settling: dict[tuple[bool, tuple[str, ...]], torch.cuda.CUDAGraph] = {}
        """By whether the grids are seen, and the widths of the integer ones."""

    def settle(self) -> None:
        """Compute the weights of the step's passes, once for all its micro-batches."""
        model, dtype = self.session.model, self.session.place.dtype
        grids = model.quantized, model.quant.widths
        if grids in self.settling:
            self.settling[grids].replay()
            return
        model.settle(dtype)
        if self.captures:
            torch.cuda.synchronize()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                model.settle(dtype)
            self.settling[grids] = graph

    def __call__(self, step: StepInputs) -> None:
        """Add all of a step's micro-batches."""
        jepa = self.session.run.jepa
        if self.session.heads is not None and jepa.sigreg_weight > 0 and jepa.sigreg_sample == "step":
            self._find_sample(step)
        for inputs in step:
            self._passes(inputs)

    def _run(self, inputs: Inputs) -> None:
        terms, after = terms_of(self.session, inputs, self.sample_SK2M)
        terms.total.backward()
        self.session.carry(after)
        self.sums += torch.stack([term.detach().float() for term in terms])

    def _find_sample(self, step: StepInputs) -> None:
        """The sums of the step's whole sample, which the passes that follow pull towards those of a Gaussian."""
        jepa, session = self.session.run.jepa, self.session
        if self.sample_SK2M is None:
            drawn = next(iter(step)).draw
            assert drawn is not None
            of = 1
            if jepa.sigreg_pool == "timestep":
                of = session.run.data.sequence if drawn.chosen is None else len(drawn.chosen)
            shape = (of, jepa.sigreg_knots, 2, jepa.sigreg_projections)
            self.sample_SK2M = torch.zeros(shape, device=session.place.device)
        self.sample_SK2M.zero_()
        before = [[value.clone() for value in state] for state in session.carried or []]
        for inputs in step:
            self._looks(inputs)
        session.ranks.sum_(self.sample_SK2M)
        for state, kept in zip(session.carried or [], before, strict=True):
            for value, old in zip(state, kept, strict=True):
                value.copy_(old)

    @torch.no_grad()
    def _look(self, inputs: Inputs) -> None:
        session = self.session
        assert self.sample_SK2M is not None
        assert session.heads is not None
        assert inputs.draw is not None
        with session.place.autocast():
            h_BTD, after = session.model(inputs.tokens_BT, inputs.reset_BT, session.carried)
            z_BTE = session.heads.project(h_BTD)
        self.sample_SK2M += sigreg_sums(z_BTE, session.run.jepa, inputs.draw)
        session.carry(after)
