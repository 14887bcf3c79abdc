"""Scoring by windows that each begin with an empty state: side by side, or sliding.

Legend: B windows, T tokens of a window, N targets, D model width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.evaluate.score import Score, Stopped, scored_targets, scores
from jepamba.evaluate.windows import Window, batches, plain_windows, sliding_windows
from jepamba.model import LanguageModel
from jepamba.progress import Report


def score_plain(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    *,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
) -> Score:
    """Score `tokens` in windows of `sequence` inputs side by side, the state empty at each window's start.

    Every target is scored once, those of the last, partial window too. The weights are used as the artifact holds
    them. Arguments: `reset`, forget the state where a document starts; `limit`, score only so many targets from the
    stream's start (0: all); `tokens_per_batch`, tokens of one forward pass; `world`, whose ranks share the windows
    and all call this; `stopped`, asked between batches whether to give up (if given on one rank, then on all).
    Raises `StoppedError` when it said so on one rank; `UserError` for an empty text, a tokenizer that does not fit the
    model, or a byte count that is not the length of the decoded text.
    """
    (score,) = score_plain_at(
        model,
        tokens,
        seq_len,
        (temperature,),
        reset=reset,
        limit=limit,
        tokens_per_batch=tokens_per_batch,
        progress=progress,
        world=world,
        stopped=stopped,
    )
    return score


def score_plain_at(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    temperatures: Sequence[float],
    *,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
) -> list[Score]:
    """`score_plain` at each of `temperatures`, for little more than the price of one; each says the time of all."""
    targets = scored_targets(model, tokens, seq_len, limit)
    windows = islice(plain_windows(targets, seq_len), world.rank, None, world.world_size)
    latents = _latents(model, tokens, windows, tokens_per_batch, reset)
    return scores(
        model,
        tokens,
        latents,
        targets,
        temperatures,
        mode="plain",
        reset=reset,
        progress=progress,
        world=world,
        stopped=stopped,
    )


def score_sliding(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    *,
    stride: int,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    tokens_per_batch: int = 16384,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
) -> Score:
    """Score `tokens` in windows of `sequence` inputs that start `stride` apart, so that all but the first window's
    targets have at least `sequence − stride` tokens before them.

    The first window counts whole, every later one its last `stride` targets, and the rest at the end is counted too.
    Arguments and errors as for `score_plain`; also `UserError` for a stride outside 1 to `sequence`.
    """
    targets = scored_targets(model, tokens, seq_len, limit)
    if not 1 <= stride <= seq_len:
        raise UserError(f"a stride of {stride} tokens: must lie between 1 and the window's {seq_len}")
    windows = islice(sliding_windows(targets, seq_len, stride), world.rank, None, world.world_size)
    latents = _latents(model, tokens, windows, tokens_per_batch, reset)
    mode = f"sliding-{stride}"
    (score,) = scores(
        model, tokens, latents, targets, (temperature,), mode=mode, reset=reset, progress=progress, world=world
    )
    return score


def _latents(
    model: LanguageModel, tokens: Tokens, windows: Iterator[Window], tokens_per_batch: int, reset: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """(h_ND, targets_N) of the targets that count, a batch of windows at a time."""
    device: torch.device = next(model.parameters()).device
    for batch in batches(tokens, windows, tokens_per_batch, reset, device):
        h_BTD, _ = model(batch.inputs_BT, batch.reset_BT)
        h_BTD, targets_BT = h_BTD[:, -batch.counted :], batch.targets_BT[:, -batch.counted :]
        yield h_BTD.flatten(0, 1), targets_BT.flatten()
