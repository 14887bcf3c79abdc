"""Which windows an evaluation reads, and which targets of each it counts: every target of the stream exactly once.

Target i of a stream is its token i + 1, predicted from the tokens before it; a stream of N tokens has N − 1 targets.

Legend: B windows, T tokens of a window, N targets.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from jepamba.data.tokens import Tokens


class Window(NamedTuple):
    """Inputs `start` to `start + length`, of whose targets the last `counted` count."""

    start: int
    length: int
    counted: int


class Windows(NamedTuple):
    """A batch of windows of one length, on the device that will read it."""

    inputs_BT: Int64[Tensor, "B T"]
    targets_BT: Int64[Tensor, "B T"]
    reset_BT: Bool[Tensor, "B T"] | None
    """True where a document starts; None where nothing is to be reset."""
    counted: int
    """Of every window the last `counted` targets count."""


def plain_windows(targets: int, seq_len: int) -> Iterator[Window]:
    """Windows side by side, each counted whole; the last may be shorter."""
    for start in range(0, targets, seq_len):
        length = min(seq_len, targets - start)
        yield Window(start, length, length)


def sliding_windows(targets: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Windows `stride` apart: the first counts whole, of every later one the last `stride` targets. A tail shorter than
    a stride is counted by a last window that ends with the stream."""
    first = min(seq_len, targets)
    if first:
        yield Window(0, first, first)
    for end in range(seq_len + stride, targets + 1, stride):
        yield Window(end - seq_len, seq_len, stride)
    tail = (targets - seq_len) % stride
    if targets > seq_len and tail:
        yield Window(targets - seq_len, seq_len, tail)


def batches(
    tokens: Tokens, windows: Iterator[Window], tokens_per_batch: int, reset: bool, device: torch.device
) -> Iterator[Windows]:
    """The windows in batches of at most `tokens_per_batch` tokens (one window at least), in order."""
    bos = tokens.bos_id if reset else None
    waiting: list[Window] = []
    for window in windows:
        alike = not waiting or window[1:] == waiting[0][1:]
        if waiting and not (alike and (len(waiting) + 1) * window.length <= tokens_per_batch):
            yield _batch(tokens, waiting, bos, device)
            waiting = []
        waiting.append(window)
    if waiting:
        yield _batch(tokens, waiting, bos, device)


def _batch(tokens: Tokens, windows: list[Window], bos: int | None, device: torch.device) -> Windows:
    ids_BS = torch.from_numpy(
        np.stack([tokens.read(w.start, w.start + w.length + 1) for w in windows]).astype(np.int64)
    ).to(device)
    inputs_BT = ids_BS[:, :-1]
    reset_BT = None if bos is None else inputs_BT == bos
    return Windows(inputs_BT, ids_BS[:, 1:], reset_BT, windows[0].counted)
