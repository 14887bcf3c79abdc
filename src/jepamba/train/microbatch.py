"""Micro-batches: the data of one forward and backward pass of one rank, and its weight in the step's loss.

Legend: B windows, T tokens of a window; K roll-out steps of latent prediction. SK2M is as in `sigreg`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from jepamba.data import Batch
from jepamba.jepa import (
    NO_LATENT_WEIGHTS,
    LatentWeights,
    LossTerms,
    LossWeights,
    Projections,
    compute_losses,
    document_pairs,
    num_samples,
    sample_projections,
)
from jepamba.train.state import TrainState


def to_device(value: Tensor, device: torch.device) -> Tensor:
    """Copy `value` to `device` without making the host wait."""
    if device.type == "cpu" or value.device.type != "cpu":
        return value
    return value.pin_memory().to(device, non_blocking=True)


def batch_to_device(batch: Batch, device: torch.device) -> Batch:
    """Copy the tokens of `batch` to `device` without making the host wait."""
    inputs_BT, targets_BT, reset_BT = (
        to_device(value, device) for value in (batch.inputs_BT, batch.targets_BT, batch.reset_BT)
    )
    return replace(batch, inputs_BT=inputs_BT, targets_BT=targets_BT, reset_BT=reset_BT)


@dataclass(frozen=True)
class MicroBatch:
    """Everything that differs from one micro-batch to the next."""

    tokens_BT: Tensor
    targets_BT: Tensor
    reset_BT: Tensor | None
    """True where a document starts; None without `data.reset`."""
    projections: Projections | None
    """SIGReg's random directions and sampled positions; None without SIGReg."""
    weights: LossWeights
    """The weight of each loss term in the step's loss."""
    windows: int
    """Number of windows of all ranks in this pass. Passes with the same number have the same shapes."""
    latent_terms: bool
    """Whether its loss has latent terms."""

    def map(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        """Apply `change` to every tensor."""

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
        """Overwrite the tensors with those of `other`, which have the same shapes."""
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if theirs.ndim == 0 and theirs.device.type == "cpu":
                # The value becomes an argument of a kernel, which takes the host less time than a transfer.
                mine.fill_(theirs.item())
            else:
                mine.copy_(to_device(theirs, mine.device), non_blocking=True)


class MicroBatches:
    """This rank's micro-batches of one step, on the device. It can be iterated over repeatedly.

    The weights make the losses means over these passes of all ranks. All ranks must construct it together.

    Arguments:
        batch: this rank's windows of the step.
        latent: weights of the latent terms at this step; None: the losses have no latent terms.
        passes: only the first `passes` passes of the step; 0: all.
        step: the steps before this one, which decide SIGReg's random choices; None: those counted so far.
    """

    def __init__(
        self,
        state: TrainState,
        batch: Batch,
        latent: LatentWeights | None,
        passes: int = 0,
        step: int | None = None,
    ) -> None:
        self.state, self.batch, self.latent = state, batch, latent
        run, layout, world = state.run, state.layout, state.world
        self.rows = [len(rows) for rows in layout.of_rank(world.rank)][: passes or layout.passes]
        """Windows of each micro-batch."""
        self.pass_windows = [[len(rows) for rows in layout.of_pass(index)] for index in range(len(self.rows))]
        """Windows of each pass on each rank."""
        self.windows = sum(map(sum, self.pass_windows))
        # One transfer for the whole step; micro-batches are slices on the device.
        part = batch_to_device(batch.part(0, sum(self.rows)), state.device)
        self.tokens_BT, self.targets_BT = part.inputs_BT, part.targets_BT
        self.reset_BT = part.reset_BT if run.data.reset else None
        self.pairs_K: Tensor | None = None
        """The positions with a target k tokens ahead in the same document, over all ranks. None without latent
        prediction, or if one micro-batch is the whole step and counts its own."""
        if latent is not None and run.jepa.weight > 0 and max(len(self.rows), world.world_size) > 1:
            shape = (len(part.inputs_BT), run.data.seq_len)
            pairs_K = document_pairs(run.jepa, shape, self.reset_BT, state.device)
            self.pairs_K = world.all_reduce_(pairs_K)
        before = state.counters.step if step is None else step
        self.projections = [self._projections(index, before) for index in range(len(self.rows))]
        """SIGReg's random choices for each micro-batch."""

    def __iter__(self) -> Iterator[MicroBatch]:
        for index, (end, rows) in enumerate(zip(accumulate(self.rows), self.rows, strict=True)):
            own = slice(end - rows, end)
            yield MicroBatch(
                self.tokens_BT[own],
                self.targets_BT[own],
                None if self.reset_BT is None else self.reset_BT[own],
                self.projections[index],
                self._weights(index),
                sum(self.pass_windows[index]),
                self.latent is not None,
            )

    @property
    def _one_sample(self) -> bool:
        """Whether SIGReg tests one sample of the whole step. Otherwise it tests one sample for each pass."""
        return self.state.run.jepa.sigreg_sample == "step"

    @property
    def _sample_windows(self) -> float:
        """Windows of a SIGReg sample. Passes can differ by one window; their mean is used, so that a rank's number of
        sampled positions depends on its own windows only, as the shapes of a captured graph require."""
        return self.windows if self._one_sample else self.state.layout.windows / self.state.layout.passes

    def _weights(self, index: int) -> LossWeights:
        run, windows = self.state.run, sum(self.pass_windows[index])
        share, latent = windows / self.windows, self.latent or NO_LATENT_WEIGHTS
        window_counts = [self.windows] if self._one_sample else self.pass_windows[index]
        samples = sum(num_samples(run.jepa, count, run.data.seq_len, self._sample_windows) for count in window_counts)
        return LossWeights(
            tokens=torch.tensor(self.rows[index] / self.windows),
            jepa=torch.tensor(latent.jepa),
            sigreg_lambda=torch.tensor(latent.sigreg if self._one_sample else latent.sigreg * share),
            vicreg=torch.tensor(latent.vicreg * share),
            sigreg_share=torch.tensor(share),
            pairs_K=self.pairs_K,
            sample_size=torch.tensor(float(samples)),
        )

    def _projections(self, index: int, step: int) -> Projections | None:
        state, run = self.state, self.state.run
        if self.latent is None or run.jepa.sigreg_weight == 0:
            return None
        number = step if self._one_sample else step * state.layout.passes + index
        shape, of = (self.rows[index], run.data.seq_len), self._sample_windows
        directions_EM, indices = sample_projections(
            run.jepa, run.model.d_model, shape, run.train.seed, number, total_windows=of, rank=state.world.rank
        )
        return Projections(
            to_device(directions_EM, state.device), None if indices is None else to_device(indices, state.device)
        )


def loss_terms(state: TrainState, micro: MicroBatch, sigreg_sums_SK2M: Tensor | None = None) -> LossTerms:
    """The loss terms of a micro-batch that is on the state's device."""
    with state.device_config.autocast():
        return compute_losses(
            state.model,
            state.heads if micro.latent_terms else None,
            state.run.jepa,
            micro.tokens_BT,
            micro.targets_BT,
            micro.reset_BT,
            micro.weights,
            micro.projections,
            target_encoder=state.target_encoder,
            sigreg_sums_SK2M=sigreg_sums_SK2M,
            world=state.world,
        )
