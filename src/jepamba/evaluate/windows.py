"""The windows of an evaluation, and the targets that each scores. Every target of the stream is scored exactly once.

Target i of a stream is token i + 1, predicted from the tokens before it. A stream of N + 1 tokens has N targets.

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
    """`length` inputs from `start` on. The last `counted` of their targets are scored."""

    start: int
    length: int
    counted: int


class Windows(NamedTuple):
    """A batch of windows of one length, on the model's device."""

    inputs_BT: Int64[Tensor, "B T"]
    targets_BT: Int64[Tensor, "B T"]
    reset_BT: Bool[Tensor, "B T"] | None
    """True where a document starts. None: no resets."""
    counted: int
    """The last `counted` targets of every window are scored."""


def plain_windows(targets: int, seq_len: int) -> Iterator[Window]:
    """Yield adjacent windows whose targets are all scored. The last may be shorter."""
    for start in range(0, targets, seq_len):
        length = min(seq_len, targets - start)
        yield Window(start, length, length)


def sliding_windows(targets: int, seq_len: int, stride: int) -> Iterator[Window]:
    """Yield windows `stride` apart. The first scores all its targets and every later one its last `stride`.

    A last window that ends with the stream scores the remaining targets, fewer than `stride`.
    """
    first = min(seq_len, targets)
    if first:
        yield Window(0, first, first)
    for end in range(seq_len + stride, targets + 1, stride):
        yield Window(end - seq_len, seq_len, stride)
    tail = (targets - seq_len) % stride
    if targets > seq_len and tail:
        yield Window(targets - seq_len, seq_len, tail)


def batch_tokens(tokens_per_batch: int, device: torch.device) -> int:
    """Return the tokens of a forward pass: `tokens_per_batch`, or if that is 0, as many as keep the device busy."""
    return tokens_per_batch or (65_536 if device.type == "cuda" else 16_384)


def batches(
    tokens: Tokens, windows: Iterator[Window], tokens_per_batch: int, reset: bool, device: torch.device
) -> Iterator[Windows]:
    """Read the windows, in order, in batches of at most `tokens_per_batch` tokens (see `batch_tokens`).

    A batch has at least one window.
    """
    tokens_per_batch = batch_tokens(tokens_per_batch, device)
    bos = tokens.bos_id if reset else None
    pending: list[Window] = []
    for window in windows:
        same_kind = not pending or window[1:] == pending[0][1:]
        if pending and not (same_kind and (len(pending) + 1) * window.length <= tokens_per_batch):
            yield _batch(tokens, pending, bos, device)
            pending = []
        pending.append(window)
    if pending:
        yield _batch(tokens, pending, bos, device)


def _batch(tokens: Tokens, windows: list[Window], bos: int | None, device: torch.device) -> Windows:
    ids_BS = torch.from_numpy(
        np.stack([tokens.read(w.start, w.start + w.length + 1) for w in windows]).astype(np.int64)
    ).to(device)
    inputs_BT = ids_BS[:, :-1]
    reset_BT = None if bos is None else inputs_BT == bos
    return Windows(inputs_BT, ids_BS[:, 1:], reset_BT, windows[0].counted)
