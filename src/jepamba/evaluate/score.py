"""Bits per byte of a text: plain windows, or sliding ones.

BPB = nats / ln 2 / bytes (spec section 3). Before a score is returned, the bytes that its targets were counted as are
compared with the length of the text that they decode to.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate.likelihood import summed_nats
from jepamba.evaluate.stored import stored
from jepamba.evaluate.windows import Window, batches, plain_windows, sliding_windows
from jepamba.model import LanguageModel
from jepamba.progress import Report

_AT_ONCE = 1 << 20
"""Targets whose bytes are counted at a time."""


@dataclass(frozen=True)
class Score:
    """What a text costs under a model."""

    bpb: float
    """Bits per byte."""
    nats_per_token: float
    """Mean over all targets, control tokens included."""
    tokens: int
    """Targets scored."""
    bytes: int
    """Bytes of text that the targets decode to."""
    mode: str
    """`plain`, or `sliding-S` with the stride S."""
    temperature: float
    """What the logits were divided by."""
    seconds: float
    """Time that scoring took."""


def score_plain(
    model: LanguageModel,
    tokens: Tokens,
    sequence: int,
    *,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
) -> Score:
    """Score `tokens` in windows of `sequence` inputs side by side, the state empty at each window's start.

    Every target is scored once, those of the last, partial window too. The weights are used as the artifact holds
    them. Arguments: `reset`, forget the state where a document starts; `limit`, score only so many targets from the
    stream's start (0: all); `tokens_per_batch`, tokens of one forward pass.
    Raises `UserError` for an empty text, a tokenizer that does not fit the model, or a byte count that is not the
    length of the decoded text.
    """
    (score,) = score_plain_at(
        model,
        tokens,
        sequence,
        (temperature,),
        reset=reset,
        limit=limit,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
    )
    return score


def score_plain_at(
    model: LanguageModel,
    tokens: Tokens,
    sequence: int,
    temperatures: Sequence[float],
    *,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
) -> list[Score]:
    """`score_plain` at each of `temperatures`, for little more than the price of one; each says the time of all."""
    targets = _targets(model, tokens, limit)
    _check(sequence, temperatures)
    windows = plain_windows(targets, sequence)
    return _scores(model, tokens, windows, targets, "plain", temperatures, reset, tokens_per_batch, progress)


def score_sliding(
    model: LanguageModel,
    tokens: Tokens,
    sequence: int,
    *,
    stride: int,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
) -> Score:
    """Score `tokens` in windows of `sequence` inputs that start `stride` apart, so that all but the first window's
    targets have at least `sequence − stride` tokens before them.

    The first window counts whole, every later one its last `stride` targets, and the rest at the end is counted too.
    Arguments and errors as for `score_plain`; also `UserError` for a stride outside 1 to `sequence`.
    """
    targets = _targets(model, tokens, limit)
    _check(sequence, (temperature,))
    if not 1 <= stride <= sequence:
        raise UserError(f"a stride of {stride} tokens: must lie between 1 and the window's {sequence}")
    windows = sliding_windows(targets, sequence, stride)
    mode = f"sliding-{stride}"
    (score,) = _scores(model, tokens, windows, targets, mode, (temperature,), reset, tokens_per_batch, progress)
    return score


def counted_bytes(tokens: Tokens, targets: int) -> int:
    """Bytes of text of the stream's first `targets` targets.

    Raises `UserError` naming the first offending piece if the count is not the length of the decoded text.
    """
    total = 0
    for start in range(0, targets, _AT_ONCE):
        ids = tokens.read(start, min(start + _AT_ONCE, targets) + 1)
        counted = int(tokens.tokenizer.target_bytes(ids[:-1], ids[1:]).sum())
        if counted != len(tokens.tokenizer.decode(ids[1:], previous=int(ids[0]))):
            at = _first_mismatch(tokens, ids)
            piece = tokens.tokenizer.decode(ids[at : at + 1], previous=int(ids[at - 1]))
            raise UserError(
                f"byte accounting is wrong from target {start + at} on: token {int(ids[at])} decodes to {piece!r} and "
                f"counts {int(tokens.tokenizer.target_bytes(ids[at - 1 : at], ids[at : at + 1])[0])} bytes"
            )
        total += counted
    return total


def _first_mismatch(tokens: Tokens, ids: NDArray[np.uint16]) -> int:
    """Index in `ids` of a token with which counted and decoded bytes part, found by halving."""
    low, high = 1, len(ids)  # the counts of ids[1:low] agree, those of ids[1:high] do not
    while high - low > 1:
        middle = (low + high) // 2
        counted = int(tokens.tokenizer.target_bytes(ids[: middle - 1], ids[1:middle]).sum())
        agree = counted == len(tokens.tokenizer.decode(ids[1:middle], previous=int(ids[0])))
        low, high = (middle, high) if agree else (low, middle)
    return low


def _targets(model: LanguageModel, tokens: Tokens, limit: int) -> int:
    if len(tokens) < 2:
        raise UserError("nothing to score: the text has fewer than 2 tokens")
    if tokens.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the text's tokenizer has {tokens.tokenizer.vocab_size:,} symbols, the model only "
            f"{model.config.vocab_size:,}: use the tokenizer that the model was trained with"
        )
    return min(limit, len(tokens) - 1) if limit > 0 else len(tokens) - 1


def _check(sequence: int, temperatures: Sequence[float]) -> None:
    if sequence < 1:
        raise UserError(f"windows of {sequence} tokens: at least 1")
    for temperature in temperatures:
        if not 0 < temperature < math.inf:
            raise UserError(f"temperature {temperature}: must be a positive number")


def _scores(
    model: LanguageModel,
    tokens: Tokens,
    windows: Iterator[Window],
    targets: int,
    mode: str,
    temperatures: Sequence[float],
    reset: bool,
    tokens_per_batch: int,
    progress: Report | None,
) -> list[Score]:
    started = time.monotonic()
    size = counted_bytes(tokens, targets)
    if size == 0:
        raise UserError("nothing to score: the text has no bytes")
    device = next(model.parameters()).device
    nats_K, done = torch.zeros(len(temperatures), dtype=torch.float64), 0
    with stored(model):
        for batch in batches(tokens, windows, tokens_per_batch, reset, device):
            h_BTD, _ = model(batch.inputs_BT, batch.reset_BT)
            h_BTD, targets_BT = h_BTD[:, -batch.counted :], batch.targets_BT[:, -batch.counted :]
            nats_K += summed_nats(model, h_BTD.flatten(0, 1), targets_BT.flatten(), temperatures)
            done += targets_BT.numel()
            if progress is not None:
                progress(done, targets, f"{float(nats_K[0]) / done:.4f} nats per token")
    if done != targets:
        raise AssertionError(f"{done} targets scored of {targets}")
    seconds = time.monotonic() - started
    return [
        Score(nats / math.log(2) / size, nats / targets, targets, size, mode, temperature, seconds)
        for nats, temperature in zip(nats_K.tolist(), temperatures, strict=True)
    ]
