"""Scoring in windows that each start with a zero state: adjacent (plain) or overlapping (sliding).

Legend: B windows, T tokens of a window, N targets, D d_model.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.evaluate.score import Score, Stopped, check_stride, scored_targets, scores
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
    tokens_per_batch: int = 0,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
    nats_N: Tensor | None = None,
) -> Score:
    """Score `tokens` in adjacent windows of `seq_len` inputs, with the weights as the artifact holds them.

    Every target is scored once, including those of the last, shorter window.

    Arguments:
        reset: Reset the state at each document's start.
        limit: Number of targets to score, from the start of the stream. 0: all.
        tokens_per_batch: Tokens of a forward pass. 0: 65,536 on a GPU, 16,384 on a CPU.
        world: Its ranks share the windows. All must call this function.
        stopped: Called between batches; True cancels the scoring on all ranks. Pass it on all ranks or on none.
        nats_N: A float64 tensor on the CPU that receives −ln p of each target, in the order of the text. For one
            process.

    Raises:
        UserError: The text is empty, the tokenizer has more symbols than the model, the temperature is out of range, or
            the byte count differs from the length of the decoded text.
        StoppedError: `stopped` returned True on some rank.
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
        nats_N=nats_N,
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
    tokens_per_batch: int = 0,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
    nats_N: Tensor | None = None,
) -> list[Score]:
    """`score_plain` at each of `temperatures`, from one set of forward passes. `seconds` is that of all together.

    `nats_N` receives −ln p at the first of them.
    """
    targets = scored_targets(model, tokens, seq_len, limit)
    windows = islice(plain_windows(targets, seq_len), world.rank, None, world.world_size)
    latents = windowed_latents(model, tokens, windows, tokens_per_batch, reset)
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
        nats_N=nats_N,
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
    tokens_per_batch: int = 0,
    progress: Report | None = None,
    world: World = SINGLE_PROCESS,
    nats_N: Tensor | None = None,
) -> Score:
    """Score `tokens` in windows of `seq_len` inputs that start `stride` apart.

    The first window scores all its targets and every later window its last `stride`, which have at least
    `seq_len − stride` tokens before them. A last window scores the remaining targets.

    Arguments and errors: see `score_plain`. Also raises `UserError` for a stride outside 1 to `seq_len`.
    """
    targets = scored_targets(model, tokens, seq_len, limit)
    check_stride(stride, seq_len)
    windows = islice(sliding_windows(targets, seq_len, stride), world.rank, None, world.world_size)
    latents = windowed_latents(model, tokens, windows, tokens_per_batch, reset)
    mode = f"sliding-{stride}"
    (score,) = scores(
        model,
        tokens,
        latents,
        targets,
        (temperature,),
        mode=mode,
        reset=reset,
        progress=progress,
        world=world,
        nats_N=nats_N,
    )
    return score


def windowed_latents(
    model: LanguageModel, tokens: Tokens, windows: Iterator[Window], tokens_per_batch: int, reset: bool, layer: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (h_ND, targets_N) of the scored targets for one batch of windows at a time.

    With a `layer` greater than 0, h_ND are the latents after that many blocks.
    """
    device: torch.device = next(model.parameters()).device
    for batch in batches(tokens, windows, tokens_per_batch, reset, device):
        h_BTD, _ = model(batch.inputs_BT, batch.reset_BT, layer=layer)
        h_BTD, targets_BT = h_BTD[:, -batch.counted :], batch.targets_BT[:, -batch.counted :]
        yield h_BTD.flatten(0, 1), targets_BT.flatten()
