"""Bits per byte of a text: the `Score`, and the sum that all scoring modes share.

BPB = nats / ln 2 / bytes. The byte count of the targets is first compared with the length of the text that they decode
to (`accounting.py`).

Legend: N targets, D d_model, K temperatures.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepamba.artifact.manifest import MAX_TEMPERATURE, MIN_TEMPERATURE
from jepamba.data.tokens import Tokens
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.accounting import Counted, TextBytes, text_bytes
from jepamba.evaluate.likelihood import target_nats
from jepamba.evaluate.precision import scoring
from jepamba.model import LanguageModel
from jepamba.progress import Report


@dataclass(frozen=True)
class Score:
    """Result of scoring a text with a model."""

    bpb: float
    """Bits per byte of the original text. `counted` says how exact its length is."""
    bpb_decoded: float
    """Bits per byte of the decoded text, which is the published convention."""
    nats_per_token: float
    """Mean over all targets, control tokens included."""
    tokens: int
    """Targets scored."""
    bytes: int
    """Bytes of the original text, the denominator of `bpb`."""
    decoded_bytes: int
    """Bytes of the decoded text, the denominator of `bpb_decoded`."""
    counted: Counted
    """How `bytes` was obtained (`TextBytes.counted`): exactly (`original`), scaled from `decoded_bytes` (`scaled`), or
    equal to `decoded_bytes` because the original length is unknown (`decoded`)."""
    unrestored_bytes: int | None
    """Bytes of the whole original text that its tokens do not give back. None: unknown."""
    mode: str
    """`plain`, `sliding-S` with stride S, `carried`, or `adapted-LR`, which is not a score of the artifact alone."""
    reset: bool
    """Whether the state is reset at each document's start."""
    temperature: float
    """Divisor of the logits."""
    seconds: float
    """Duration of scoring."""


Stopped = Callable[[], bool]
"""Called between batches; True cancels the scoring."""


class StoppedError(Exception):
    """Scoring was cancelled."""


def check_temperature(temperature: float) -> None:
    """Raise `UserError` for a temperature out of range."""
    if not MIN_TEMPERATURE <= temperature <= MAX_TEMPERATURE:
        raise UserError(f"temperature {temperature:g}: must be between {MIN_TEMPERATURE:g} and {MAX_TEMPERATURE:g}")


def check_stride(stride: int, seq_len: int) -> None:
    """Raise `UserError` for a stride of sliding windows out of range."""
    if not 1 <= stride <= seq_len:
        raise UserError(f"a stride of {stride} tokens: must be between 1 and the window length {seq_len}")


def scored_targets(model: LanguageModel, tokens: Tokens, seq_len: int, limit: int) -> int:
    """Return how many targets to score: all of `tokens`, or the first `limit` if that is not 0.

    Raises `UserError` for an empty text, a tokenizer with more symbols than the model, or `seq_len` below 1.
    """
    if len(tokens) < 2:
        raise UserError("nothing to score: the text has fewer than 2 tokens")
    if tokens.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the text's tokenizer has {tokens.tokenizer.vocab_size:,} symbols, the model only "
            f"{model.config.vocab_size:,}: use the tokenizer that the model was trained with"
        )
    if seq_len < 1:
        raise UserError(f"windows of {seq_len} tokens: must be at least 1")
    return min(limit, len(tokens) - 1) if limit > 0 else len(tokens) - 1


def scores(
    model: LanguageModel,
    tokens: Tokens,
    latents: Iterator[tuple[Tensor, Tensor]],
    targets: int,
    temperatures: Sequence[float],
    *,
    mode: str,
    reset: bool,
    progress: Report | None,
    world: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
    nats_N: Tensor | None = None,
) -> list[Score]:
    """Score the first `targets` targets at each temperature, with the weights as the artifact holds them.

    Arguments:
        latents: Yields (h_ND, targets_N). Each target occurs once, on one rank, in any order.
        mode: `Score.mode`.
        stopped: If it returns True on one rank, all ranks raise `StoppedError` after the current batch.
        nats_N: A float64 tensor on the CPU that receives −ln p of each target at the first temperature, in the order of
            `latents`. For one process.

    Returns:
        A score for each temperature, equal on all ranks.

    Raises:
        UserError: A temperature is out of range, or the byte count differs from the length of the decoded text.
        DivergedError: the score is not finite.
        StoppedError: `stopped` returned True on some rank.
    """
    for temperature in temperatures:
        check_temperature(temperature)
    started = time.monotonic()
    size = text_bytes(tokens, targets)
    nats_K, done = torch.zeros(len(temperatures), dtype=torch.float64), 0
    with scoring(model):
        for h_ND, targets_N in latents if stopped is None else _synchronized(latents, world, stopped):
            nats_Kn = target_nats(model, h_ND, targets_N, temperatures)
            nats_K += nats_Kn.sum(1)
            if nats_N is not None:
                nats_N[done : done + len(targets_N)] = nats_Kn[0]
            done += len(targets_N)
            if progress is not None:
                progress(
                    min(done * world.world_size, targets), targets, f"{float(nats_K[0]) / done:.4f} nats per token"
                )
    # A rank may score its share much faster than another.
    sums = world.all_gather_object([*nats_K.tolist(), done], patient=True)
    *nats, done = (sum(values) for values in zip(*sums, strict=True))
    if done != targets:
        raise AssertionError(f"{done} targets scored of {targets}")
    if not all(map(math.isfinite, nats)):
        raise DivergedError
    seconds = time.monotonic() - started
    return [
        score_of(nats, tokens, size, targets, mode=mode, reset=reset, temperature=temperature, seconds=seconds)
        for nats, temperature in zip(nats, temperatures, strict=True)
    ]


def score_of(
    nats: float,
    tokens: Tokens,
    size: TextBytes,
    targets: int,
    *,
    mode: str,
    reset: bool,
    temperature: float,
    seconds: float,
) -> Score:
    """Return the score of the first `targets` targets, whose −ln p have the sum `nats` and whose text has `size`."""
    return Score(
        bpb=nats / math.log(2) / size.original,
        bpb_decoded=nats / math.log(2) / size.decoded,
        nats_per_token=nats / targets,
        tokens=targets,
        bytes=size.original,
        decoded_bytes=size.decoded,
        counted=size.counted,
        unrestored_bytes=None if tokens.unrestored is None else tokens.unrestored.bytes,
        mode=mode,
        reset=reset,
        temperature=temperature,
        seconds=seconds,
    )


def _synchronized(
    latents: Iterator[tuple[Tensor, Tensor]], world: World, stopped: Stopped
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield this rank's `latents` in step with the other ranks, which may have fewer. Raises `StoppedError`."""
    while True:
        batch = next(latents, None)
        statuses = world.all_gather_object([batch is not None, stopped()])
        if any(cancelled for _, cancelled in statuses):
            raise StoppedError
        if batch is not None:
            yield batch
        elif not any(has_batch for has_batch, _ in statuses):
            return
