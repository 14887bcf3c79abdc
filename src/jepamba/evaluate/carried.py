"""Scoring by carried state: every token of the text is read once, and the state goes on from window to window.

Where a document's start resets the state nothing that came before matters, so that documents may be read in any order
and side by side, in lanes, without changing the score. Where nothing resets it the text is one lane.

Legend: B lanes (those that have not ended), T tokens of a window, N targets, D model width.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.evaluate.score import Score, scored_targets, scores
from jepamba.model import LanguageModel, State
from jepamba.model.mixer import MixerState
from jepamba.progress import Report

_AT_ONCE = 1 << 22


def score_carried(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    *,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
) -> Score:
    """Score `tokens` in one pass: each target is predicted from all tokens before it, back to its document's start.

    With `reset` off, or where nothing separates documents, back to the text's start. `sequence`, the shortest window of
    a pass, and `tokens_per_batch`, the tokens of one, change speed and rounding but not what is computed: few lanes
    have long windows. Arguments and errors otherwise as for `score_plain`.
    """
    targets = scored_targets(model, tokens, seq_len, limit)
    mark = tokens.bos_id if reset else None
    parts = [(0, targets)] if mark is None else _documents(tokens, mark, targets)
    lanes = _lanes(parts, max(1, tokens_per_batch // seq_len))
    latents = _latents(model, tokens, lanes, tokens_per_batch, mark is not None)
    (score,) = scores(model, tokens, latents, targets, (temperature,), mode="carried", reset=reset, progress=progress)
    return score


Part = tuple[int, int]
"""Inputs `start` to `stop` of the stream; their targets are the tokens `start + 1` to `stop + 1`."""


def _documents(tokens: Tokens, bos: int, targets: int) -> list[Part]:
    """The documents among the first `targets` inputs, in order; what precedes the first BOS is one too."""
    starts = [0]
    for start in range(0, targets, _AT_ONCE):
        found = np.flatnonzero(tokens.read(start, min(start + _AT_ONCE, targets)) == bos) + start
        starts += found[found > 0].tolist()
    return list(zip(starts, [*starts[1:], targets], strict=True))


def _lanes(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """`parts` in at most `most` lanes of nearly equal length.

    So few lanes that the longest part is no longer than their mean; then longest part first, each to the lane that is
    shortest so far (Graham 1969).
    """
    lengths = [stop - start for start, stop in parts]
    count = max(1, min(most, sum(lengths) // max(lengths)))
    lanes: list[list[Part]] = [[] for _ in range(count)]
    heap = [(0, lane) for lane in range(count)]
    for index in sorted(range(len(parts)), key=lambda index: -lengths[index]):
        length, lane = heap[0]
        lanes[lane].append(parts[index])
        heapq.heapreplace(heap, (length + lengths[index], lane))
    return lanes


class _Lane:
    """Parts of a stream, read one after the other."""

    def __init__(self, tokens: Tokens, parts: Sequence[Part]) -> None:
        self.tokens, self.left = tokens, sum(stop - start for start, stop in parts)
        self._parts = list(reversed(parts))
        self._starts = True

    def read(self, into: NDArray[np.int64], starts: NDArray[np.bool_]) -> None:
        """Fill `into` (2, T), inputs and targets, and mark in `starts` (T,) where parts start; as far as tokens go."""
        done = 0
        while done < into.shape[1] and self._parts:
            start, stop = self._parts.pop()
            step = min(stop - start, into.shape[1] - done)
            ids = self.tokens.read(start, start + step + 1)
            into[0, done : done + step], into[1, done : done + step] = ids[:-1], ids[1:]
            starts[done] = self._starts
            self._starts = start + step == stop
            if not self._starts:
                self._parts.append((start + step, stop))
            done += step
        self.left -= done


def _latents(
    model: LanguageModel, tokens: Tokens, parts: list[list[Part]], tokens_per_batch: int, reset: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """(h_ND, targets_N), a window of every lane at a time."""
    device, chunk = next(model.parameters()).device, model.config.chunk_size
    lanes = [_Lane(tokens, part) for part in parts]
    state: State | None = None
    while lanes:
        window = max(1, tokens_per_batch // len(lanes))
        # Whole chunks, as the operator computes them; of a long window many times as many, so that it can be cut.
        whole = chunk if window < 32 * chunk else 16 * chunk
        window = min(window - window % whole if window > whole else window, max(lane.left for lane in lanes))
        both_B2T = np.zeros((len(lanes), 2, window), dtype=np.int64)
        starts_BT = np.zeros((len(lanes), window), dtype=np.bool_)
        counted_B1 = np.array([[min(lane.left, window)] for lane in lanes])
        for lane, into, starts in zip(lanes, both_B2T, starts_BT, strict=True):
            lane.read(into, starts)
        inputs_BT, targets_BT = torch.from_numpy(both_B2T).to(device).unbind(1)
        h_BTD, state = model(inputs_BT, torch.from_numpy(starts_BT).to(device) if reset else None, state)
        # A lane that has ended is filled up with tokens that do not count.
        counted_BT = torch.from_numpy(np.arange(window) < counted_B1).to(device)
        yield h_BTD[counted_BT], targets_BT[counted_BT]
        going = [row for row, lane in enumerate(lanes) if lane.left]
        if len(going) < len(lanes):
            lanes, rows_B = [lanes[row] for row in going], torch.tensor(going, dtype=torch.int64, device=device)
            state = [MixerState(*(value[rows_B] for value in of_block)) for of_block in state]
