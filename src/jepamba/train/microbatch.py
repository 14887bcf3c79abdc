"""A micro-batch: the data of one forward and backward pass of one rank, and its weight in the step's loss.

Legend: B windows, T tokens of a window; K roll-out steps of latent prediction; S, K, M of SIGReg's sums as in `sigreg`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.jepa import LossTerms, LossWeights, Projections, document_pairs, num_samples, objective, sample_projections
from jepamba.model import State
from jepamba.train.state import TrainState


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """`value` on `device`; the host does not wait for the copy."""
    if device.type == "cpu" or value.device.type != "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)


@dataclass(frozen=True)
class MicroBatch:
    """Everything that differs from one micro-batch to the next."""

    tokens_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor | None
    """True where a document starts; None without `data.reset`."""
    projections: Projections | None
    """SIGReg's random directions and the positions that it tests; None without SIGReg."""
    weights: LossWeights
    """What each loss term of this micro-batch counts in the step's loss."""
    windows: int
    """Windows of the micro-batches of all ranks in this pass. Passes with the same number have the same shapes."""
    continues: bool
    """Whether it starts in the model state in which the micro-batch before it ended (`train.carry_state`)."""

    def map(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """A micro-batch with every tensor changed."""

        def changed(value: Any) -> Any:
            if isinstance(value, tuple):
                return type(value)(*map(changed, value))
            return change(value) if isinstance(value, Tensor) else value

        return MicroBatch(*(changed(getattr(self, field.name)) for field in fields(self)))

    def to(self, device: torch.device) -> MicroBatch:
        """This micro-batch on `device`."""
        return self.map(lambda value: to_device(value, device))

    def tensors(self) -> list[Tensor]:
        """Every tensor, in the order of the fields."""
        found: list[Tensor] = []

        def collected(value: Tensor) -> Tensor:
            found.append(value)
            return value

        self.map(collected)
        return found

    def copy_(self, other: MicroBatch) -> None:
        """Copy the tensors of `other`, of the same shapes, into this one's."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            mine.copy_(to_device(theirs, mine.device), non_blocking=True)


class MicroBatches:
    """This rank's micro-batches of the next step, or of its first `passes` passes; iterate over it as often as needed.

    The losses are means over these passes of all ranks. All ranks must construct it at the same time.

    Arguments: `batch`, this rank's windows of the step; `lam`, λ.
    """

    def __init__(self, state: TrainState, batch: Batch, lam: float, passes: int = 0) -> None:
        self.state, self.lam = state, lam
        run, layout, ranks = state.run, state.layout, state.ranks
        self.rows = [len(rows) for rows in layout.of_rank(ranks.rank)][: passes or layout.passes]
        """Windows of each micro-batch."""
        self.pass_windows = [[len(rows) for rows in layout.of_pass(index)] for index in range(len(self.rows))]
        """Windows of each pass on each rank."""
        self.windows = sum(map(sum, self.pass_windows))
        batch = batch.part(0, sum(self.rows))
        self.continues_B = batch.continues_B
        # One transfer for the whole step; micro-batches are slices on the device.
        self.tokens_BT, self.targets_BT = (to_device(v, state.device) for v in (batch.inputs_BT, batch.targets_BT))
        self.reset_BT = to_device(batch.reset_BT, state.device) if run.data.reset else None
        # How many positions have a target k further in the same document is known only from all ranks' windows.
        steps = run.jepa.rollout_steps if run.jepa.weight > 0 else 1
        shape = (len(batch.inputs_BT), run.data.seq_len)
        self.pairs_K = ranks.all_reduce_(document_pairs(shape, self.reset_BT, steps, state.device))

    def __iter__(self) -> Iterator[MicroBatch]:
        for index, (end, rows) in enumerate(zip(accumulate(self.rows), self.rows, strict=True)):
            where = slice(end - rows, end)
            yield MicroBatch(
                self.tokens_BT[where],
                self.targets_BT[where],
                None if self.reset_BT is None else self.reset_BT[where],
                self._projections(index),
                self._weights(index),
                sum(self.pass_windows[index]),
                continues=bool(self.continues_B[end - rows]),
            )

    @property
    def _one_sample(self) -> bool:
        """Whether SIGReg tests one sample of the whole step; otherwise it tests one sample for each pass."""
        return self.state.run.jepa.sigreg_sample == "step"

    @property
    def _sample_windows(self) -> float:
        """Windows of a sample. Passes can differ by one window; their mean is used, so that the number of draws of a
        rank follows from its own windows alone (a captured graph needs the shape)."""
        return self.windows if self._one_sample else self.state.layout.windows / self.state.layout.passes

    def _weights(self, index: int) -> LossWeights:
        run, windows = self.state.run, sum(self.pass_windows[index])
        share = windows / self.windows
        parts = [self.windows] if self._one_sample else self.pass_windows[index]
        draws = sum(num_samples(run.jepa, part, run.data.seq_len, self._sample_windows) for part in parts)
        return LossWeights(
            tokens=torch.tensor(self.rows[index] / self.windows),
            sigreg_lambda=torch.tensor(self.lam if self._one_sample else self.lam * share),
            sigreg_share=torch.tensor(share),
            pairs_K=self.pairs_K,
            sample_size=torch.tensor(float(draws)),
        )

    def _projections(self, index: int) -> Projections | None:
        state, run = self.state, self.state.run
        if state.heads is None or run.jepa.sigreg_weight == 0:
            return None
        step = state.counters.step
        number = step if self._one_sample else step * state.layout.passes + index
        shape, of = (self.rows[index], run.data.seq_len), self._sample_windows
        return sample_projections(
            run.jepa, run.model.d_model, shape, run.train.seed, number, total_windows=of, rank=state.ranks.rank
        )


def loss_terms(state: TrainState, micro: MicroBatch, sigreg_sums_SK2M: Tensor | None = None) -> tuple[LossTerms, State]:
    """The loss terms of a micro-batch on the state's device, and the model's state after it."""
    with state.device_config.autocast():
        return objective(
            state.model,
            state.heads,
            state.run.jepa,
            micro.tokens_BT,
            micro.targets_BT,
            micro.reset_BT,
            micro.weights,
            micro.projections,
            state.carried,
            sigreg_sums_SK2M=sigreg_sums_SK2M,
            ranks=state.ranks,
        )
