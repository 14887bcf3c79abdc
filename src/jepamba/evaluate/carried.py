"""Scoring with carried state: the model reads each token once and carries its state from window to window.

If the state is reset at each document's start, documents are independent. They are then read in parallel lanes, in any
order, without a change of the score. Without resets the text is one lane.

Legend: B unfinished lanes, T tokens of a window, N targets, D d_model.
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
from jepamba.evaluate.windows import batch_tokens
from jepamba.model import LanguageModel, State
from jepamba.progress import Report

_CHUNK_TOKENS = 1 << 22
"""Tokens searched for document starts in one step."""


def score_carried(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    *,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 0,
    progress: Report | None = None,
    nats_N: Tensor | None = None,
) -> Score:
    """Score `tokens` in one pass, where each target is predicted from all preceding tokens of its document.

    With `reset` off, or for a tokenizer without a separator, it is predicted from all preceding tokens of the text.

    Arguments:
        seq_len: Shortest window of a forward pass. With fewer lanes the windows are longer. Apart from rounding, it
            affects only the speed.
        tokens_per_batch: Tokens of a forward pass. 0: by the device. Apart from rounding, it affects only the speed.
        nats_N: See `score_plain`. The documents are then read one after the other.

    Other arguments and errors: see `score_plain`.
    """
    targets = scored_targets(model, tokens, seq_len, limit)
    bos = tokens.bos_id if reset else None
    tokens_per_batch = batch_tokens(tokens_per_batch, next(model.parameters()).device)
    spans = documents(tokens, bos, targets)
    lanes = [spans] if nats_N is not None else even_lanes(spans, max(1, tokens_per_batch // seq_len))
    batches = carried_latents(model, tokens, lanes, tokens_per_batch, bos is not None)
    latents = ((h_ND, targets_N) for h_ND, targets_N, _ in batches)
    (score,) = scores(
        model, tokens, latents, targets, (temperature,), mode="carried", reset=reset, progress=progress, nats_N=nats_N
    )
    return score


Span = tuple[int, int]
"""(start, stop): inputs `start` to `stop − 1` of the stream, whose targets are tokens `start + 1` to `stop`."""


def documents(tokens: Tokens, bos: int | None, targets: int) -> list[Span]:
    """Return the documents among the first `targets` inputs, in order. Tokens before the first BOS form a document.

    With None for `bos` all inputs are one document.
    """
    if bos is None:
        return [(0, targets)]
    starts = [0]
    for start in range(0, targets, _CHUNK_TOKENS):
        found = np.flatnonzero(tokens.read(start, min(start + _CHUNK_TOKENS, targets)) == bos) + start
        starts += found[found > 0].tolist()
    return list(zip(starts, [*starts[1:], targets], strict=True))


def even_lanes(spans: Sequence[Span], max_lanes: int) -> list[list[Span]]:
    """Distribute `spans` over at most `max_lanes` lanes of nearly equal length.

    There are few enough lanes that the longest span does not exceed their mean length. In order of decreasing length,
    each span goes to the lane that is shortest so far (Graham 1969).
    """
    lengths = [stop - start for start, stop in spans]
    count = max(1, min(max_lanes, sum(lengths) // max(lengths)))
    lanes: list[list[Span]] = [[] for _ in range(count)]
    heap = [(0, lane) for lane in range(count)]
    for index in sorted(range(len(spans)), key=lambda index: -lengths[index]):
        length, lane = heap[0]
        lanes[lane].append(spans[index])
        heapq.heapreplace(heap, (length + lengths[index], lane))
    return lanes


class _Lane:
    """Spans of a stream, read one after the other."""

    def __init__(self, tokens: Tokens, spans: Sequence[Span]) -> None:
        self.tokens, self.remaining = tokens, sum(stop - start for start, stop in spans)
        self._spans = list(reversed(spans))
        self._at_start = True

    def read(self, out: NDArray[np.int64], starts: NDArray[np.bool_]) -> None:
        """Read up to T inputs, targets and places of the inputs into `out` (3, T); set `starts` (T,) at span starts."""
        done = 0
        while done < out.shape[1] and self._spans:
            start, stop = self._spans.pop()
            step = min(stop - start, out.shape[1] - done)
            ids = self.tokens.read(start, start + step + 1)
            out[:, done : done + step] = ids[:-1], ids[1:], np.arange(start, start + step)
            starts[done] = self._at_start
            self._at_start = start + step == stop
            if not self._at_start:
                self._spans.append((start + step, stop))
            done += step
        self.remaining -= done


def carried_latents(
    model: LanguageModel,
    tokens: Tokens,
    spans_by_lane: list[list[Span]],
    tokens_per_batch: int,
    reset: bool,
    layer: int = 0,
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """Yield (h_ND, targets_N, places_N) for one window of every lane at a time. One lane is read in its order.

    A place is that of the input in the stream. `reset`: whether the state is reset at the start of each span. With a
    `layer` greater than 0, h_ND are the latents after that many blocks.
    """
    device, chunk = next(model.parameters()).device, model.config.chunk_size
    tokens_per_batch = batch_tokens(tokens_per_batch, device)
    lanes = [_Lane(tokens, spans) for spans in spans_by_lane]
    state: State | None = None
    while lanes:
        window = max(1, tokens_per_batch // len(lanes))
        # The SSD operator works on whole chunks, and it can split a long window if that has a multiple of 16 chunks.
        multiple = chunk if window < 32 * chunk else 16 * chunk
        window = min(window - window % multiple if window > multiple else window, max(lane.remaining for lane in lanes))
        ids_B3T = np.zeros((len(lanes), 3, window), dtype=np.int64)
        starts_BT = np.zeros((len(lanes), window), dtype=np.bool_)
        counted_B1 = np.array([[min(lane.remaining, window)] for lane in lanes])
        for lane, out, starts in zip(lanes, ids_B3T, starts_BT, strict=True):
            lane.read(out, starts)
        inputs_BT, targets_BT = torch.from_numpy(ids_B3T[:, :2]).to(device).unbind(1)
        h_BTD, state = model(inputs_BT, torch.from_numpy(starts_BT).to(device) if reset else None, state, layer)
        # The padding of a lane that ended within the window is not scored.
        scored_BT = np.arange(window) < counted_B1
        counted_BT = torch.from_numpy(scored_BT).to(device)
        yield h_BTD[counted_BT], targets_BT[counted_BT], ids_B3T[:, 2][scored_BT]
        active = [row for row, lane in enumerate(lanes) if lane.remaining]
        if len(active) < len(lanes):
            lanes, rows_B = [lanes[row] for row in active], torch.tensor(active, dtype=torch.int64, device=device)
            state = [type(block)(*(value[rows_B] for value in block)) for block in state]
