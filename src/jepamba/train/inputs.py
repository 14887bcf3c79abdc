"""What one micro-batch is: its tokens, what SIGReg drew for it, and what part of the step it is.

Legend: B, T as everywhere; K roll-out steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.jepa import Projections, Shares, document_pairs, num_samples, sample_projections
from jepamba.train.session import Session


def sent(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`, by a copy that need not be waited for."""
    if device.type == "cpu" or value.device.type != "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)


class Inputs(NamedTuple):
    """All that differs from one micro-batch to the next."""

    tokens_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor | None
    lam: Tensor
    """λ times what the sample of this pass counts, a scalar."""
    projections: Projections | None
    """What SIGReg drew."""
    shares: Shares
    """What part of the step this is."""
    windows: int
    """Windows of the pass, over all ranks: passes of as many are alike in every shape, on each rank."""

    def tensors(self) -> list[Tensor]:
        """Every tensor, in order."""
        several = (self.tokens_BT, self.targets_BT, self.reset_BT, self.lam, *(self.projections or ()), *self.shares)
        return [value for value in several if value is not None]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        """The same with every tensor changed."""
        projections = None
        if self.projections is not None:
            projections = Projections(
                change(self.projections.directions_EM),
                None if self.projections.chosen is None else change(self.projections.chosen),
            )
        return Inputs(
            change(self.tokens_BT),
            change(self.targets_BT),
            None if self.reset_BT is None else change(self.reset_BT),
            change(self.lam),
            projections,
            Shares(*(change(value) for value in self.shares)),
            self.windows,
        )


class StepInputs:
    """The micro-batches of this rank in the next step, or in as many of its first `passes`: all that the losses are
    means over. To be made by all ranks at once.

    Arguments: `batch`, this rank's windows of the step; `lam`, λ.
    """

    def __init__(self, session: Session, batch: Batch, lam: float, passes: int = 0) -> None:
        self.session, self.lam = session, lam
        run, batch_layout, ranks, device = session.run, session.batch_layout, session.ranks, session.place.device
        self.passes = passes or batch_layout.passes
        self.rows = [len(rows) for rows in batch_layout.of_rank(ranks.rank)][: self.passes]
        batch = batch.part(0, sum(self.rows))
        self.continues = [bool(batch.part(start, start + 1).continues_B[0]) for start in self._starts()]
        # Sent once, all of it: what follows is on the device.
        self.tokens_BT, self.targets_BT = sent(batch.inputs_BT, device), sent(batch.targets_BT, device)
        self.reset_BT = sent(batch.reset_BT, device) if run.data.reset else None
        self.windows = sum(len(rows) for index in range(self.passes) for rows in batch_layout.of_pass(index))
        # Known only once every rank has read its windows: documents end where they end.
        shape = (len(batch.inputs_BT), run.data.seq_len)
        steps = run.jepa.rollout_steps if run.jepa.weight > 0 else 1
        self.pairs_K = ranks.all_reduce_(document_pairs(shape, self.reset_BT, steps, device))

    def __iter__(self) -> Iterator[Inputs]:
        """Each micro-batch; what was carried into it is emptied where it continues nothing."""
        for index, (start, rows) in enumerate(zip(self._starts(), self.rows, strict=True)):
            if not self.continues[index]:
                self.session.carry(None)
            where = slice(start, start + rows)
            reset_BT = None if self.reset_BT is None else self.reset_BT[where]
            windows = sum(len(part) for part in self.session.batch_layout.of_pass(index))
            counts = windows / self.windows
            lam = self.lam if self._whole else self.lam * counts
            shares = Shares(
                torch.tensor(rows / self.windows), self.pairs_K, torch.tensor(counts), torch.tensor(self._draws(index))
            )
            yield Inputs(
                self.tokens_BT[where],
                self.targets_BT[where],
                reset_BT,
                torch.tensor(lam),
                self._drawn(index, rows),
                shares,
                windows,
            )

    @property
    def _whole(self) -> bool:
        """Whether SIGReg has one sample for all passes."""
        return self.session.run.jepa.sigreg_sample == "step"

    @property
    def _sample_windows(self) -> float:
        """Windows of a sample; of several passes that differ by a window their mean, so that each rank's draws follow
        from its own windows alone (a captured graph has as many)."""
        return self.windows if self._whole else self.session.batch_layout.windows / self.session.batch_layout.passes

    def _starts(self) -> list[int]:
        return [sum(self.rows[:index]) for index in range(len(self.rows))]

    def _drawn(self, index: int, rows: int) -> Projections | None:
        session = self.session
        run, step = session.run, session.progress.step
        if session.heads is None or run.jepa.sigreg_weight == 0:
            return None
        number = step if self._whole else step * session.batch_layout.passes + index
        shape, of = (rows, run.data.seq_len), self._sample_windows
        return sample_projections(
            run.jepa, run.model.d_model, shape, run.train.seed, number, of=of, rank=session.ranks.rank
        )

    def _draws(self, index: int) -> float:
        """Draws of the sample that pass `index` is tested in, over all ranks."""
        run, batch_layout = self.session.run, self.session.batch_layout
        parts = [range(self.windows)] if self._whole else batch_layout.of_pass(index)
        return float(sum(num_samples(run.jepa, len(rows), run.data.seq_len, self._sample_windows) for rows in parts))
