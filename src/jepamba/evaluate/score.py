"""Bits per byte of a text: what a score says, and the sum behind every way of scoring.

BPB = nats / ln 2 / bytes. Before a score is returned, the bytes that its targets were counted as are
compared with the length of the text that they decode to (`accounting.py`).

Legend: N targets, D model width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jepamba.artifact.manifest import COLDEST, HOTTEST
from jepamba.data.tokens import Tokens
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.errors import UserError
from jepamba.evaluate.accounting import Counted, text_bytes
from jepamba.evaluate.likelihood import summed_nats
from jepamba.evaluate.stored import stored
from jepamba.model import LanguageModel
from jepamba.progress import Report


@dataclass(frozen=True)
class Score:
    """What a text costs under a model."""

    bpb: float
    """Bits per byte of the original text; see `counted`."""
    bpb_decoded: float
    """Bits per byte of the text that the tokens decode to: the published convention."""
    nats_per_token: float
    """Mean over all targets, control tokens included."""
    tokens: int
    """Targets scored."""
    bytes: int
    """Bytes of the original text: what `bpb` divides by."""
    decoded_bytes: int
    """Bytes of text that the targets decode to: what `bpb_decoded` divides by."""
    counted: Counted
    """How `bytes` is known: `original`, exactly; `scaled`, from the decoded bytes of a part of a text that the
    tokenizer changes; `decoded`, not at all, and the decoded bytes stand for it."""
    mode: str
    """`plain`, `sliding-S` with the stride S, or `carried`."""
    reset: bool
    """Whether the state is forgotten where a document starts."""
    temperature: float
    """What the logits were divided by."""
    seconds: float
    """Time that scoring took."""


Stopped = Callable[[], bool]
"""Asked between two batches: whether the score is no longer wanted."""


class StoppedError(Exception):
    """A score was left unfinished because it was no longer wanted."""


def scored_targets(model: LanguageModel, tokens: Tokens, seq_len: int, limit: int) -> int:
    """How many targets an evaluation scores: all of `tokens`, or the first `limit` if that is not 0.

    Raises `UserError` for an empty text, a tokenizer that does not fit the model, or a window of no length.
    """
    if len(tokens) < 2:
        raise UserError("nothing to score: the text has fewer than 2 tokens")
    if tokens.tokenizer.vocab_size > model.config.vocab_size:
        raise UserError(
            f"the text's tokenizer has {tokens.tokenizer.vocab_size:,} symbols, the model only "
            f"{model.config.vocab_size:,}: use the tokenizer that the model was trained with"
        )
    if seq_len < 1:
        raise UserError(f"windows of {seq_len} tokens: at least 1")
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
    ranks: World = SINGLE_PROCESS,
    stopped: Stopped | None = None,
) -> list[Score]:
    """The score of the first `targets` targets at each temperature, in `mode`.

    `latents` gives (h_ND, targets_N) of some targets at a time, each target of the stream once, in any order, and on
    one of the `ranks` alone; all have the score. It is run with the weights as the artifact holds them. Raises
    `UserError` for a wrong temperature, or a byte count that is not the length of the decoded text; `StoppedError`, on
    all ranks, soon after `stopped` says so on one.
    """
    for temperature in temperatures:
        if not COLDEST <= temperature <= HOTTEST:
            raise UserError(f"temperature {temperature}: must be between {COLDEST:g} and {HOTTEST:g}")
    started = time.monotonic()
    size = text_bytes(tokens, targets)
    nats_K, done = torch.zeros(len(temperatures), dtype=torch.float64), 0
    with stored(model):
        for h_ND, targets_N in latents if stopped is None else _in_concert(latents, ranks, stopped):
            nats_K += summed_nats(model, h_ND, targets_N, temperatures)
            done += len(targets_N)
            if progress is not None:
                progress(
                    min(done * ranks.world_size, targets), targets, f"{float(nats_K[0]) / done:.4f} nats per token"
                )
    *nats, done = (sum(values) for values in zip(*ranks.all_gather_object([*nats_K.tolist(), done]), strict=True))
    if done != targets:
        raise AssertionError(f"{done} targets scored of {targets}")
    seconds = time.monotonic() - started
    return [
        Score(
            bpb=nats / math.log(2) / size.original,
            bpb_decoded=nats / math.log(2) / size.decoded,
            nats_per_token=nats / targets,
            tokens=targets,
            bytes=size.original,
            decoded_bytes=size.decoded,
            counted=size.counted,
            mode=mode,
            reset=reset,
            temperature=temperature,
            seconds=seconds,
        )
        for nats, temperature in zip(nats, temperatures, strict=True)
    ]


def _in_concert(
    latents: Iterator[tuple[Tensor, Tensor]], ranks: World, stopped: Stopped
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's `latents`, batch by batch along with the others', who may have fewer. Raises `StoppedError`."""
    while True:
        batch = next(latents, None)
        told = ranks.all_gather_object([batch is not None, stopped()])
        if any(asked for _, asked in told):
            raise StoppedError
        if batch is not None:
            yield batch
        elif not any(more for more, _ in told):
            return
