"""Scoring with score-first adaptation (dynamic evaluation, Krause et al. 2018).

The text is read in order, chunk by chunk, and the state is carried on. Each chunk is scored with the weights that the
text before it has left, and only then trained on: one step of Adam on its cross-entropy, at temperature 1. So nothing
but the artifact and the tokens before it predicts a target, but the weights are no longer those of the artifact.

Legend: T tokens of a chunk, S = T + 1 with the last target, D d_model, N = T targets.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.score import Score, scored_targets, scores
from jepamba.model import LanguageModel, State
from jepamba.progress import Report

ADAPT_LR = 5e-5
"""Learning rate of the adaptation. This, the chunk and the optimizer were chosen by measurement
(docs/results/adapt-2026-11-29.md)."""
CHUNK_TOKENS = 256
"""Tokens between two updates."""
_BETAS = (0.0, 0.999)
"""Adam without momentum: momentum over few, different chunks makes the score worse."""


def score_adapted(
    model: LanguageModel,
    tokens: Tokens,
    *,
    lr: float = ADAPT_LR,
    chunk_tokens: int = CHUNK_TOKENS,
    temperature: float = 1.0,
    reset: bool = True,
    limit: int = 0,
    progress: Report | None = None,
) -> Score:
    """Score `tokens` in one pass, and after each chunk train all weights on it. They are restored afterwards.

    As in `score_carried`, each target is predicted from all preceding tokens of its document, or of the text with
    `reset` off. Adaptation crosses documents: the weights are never reset.

    Arguments:
        lr: Learning rate of Adam. 0 gives the carried score, up to rounding.
        chunk_tokens: Tokens that are scored before the model is trained on them.

    Other arguments and errors: see `score_plain`. Also raises `UserError` for a negative or infinite `lr`, and for one
    so large that the score is not finite.
    """
    if not 0 <= lr < math.inf:
        raise UserError(f"an adaptation learning rate of {lr:g}: must be at least 0 and finite")
    targets = scored_targets(model, tokens, chunk_tokens, limit)
    latents = _latents(model, tokens, targets, chunk_tokens, lr, tokens.bos_id if reset else None)
    mode = f"adapted-{lr}"
    try:
        (score,) = scores(model, tokens, latents, targets, (temperature,), mode=mode, reset=reset, progress=progress)
    except DivergedError:
        raise UserError(
            f"an adaptation learning rate of {lr}: the score is not finite; choose a smaller rate"
        ) from None
    return score


def _latents(
    model: LanguageModel, tokens: Tokens, targets: int, chunk_tokens: int, lr: float, bos: int | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (h_ND, targets_N) of one chunk after the other; train on a chunk when the next one is requested.

    It runs inside `stored`, which puts the weights back. They are copied here, because updates are in place.
    """
    device = next(model.parameters()).device
    with torch.inference_mode(False):
        for weight in model.quant_weights().values():
            weight.master.data = weight.master.detach().clone()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.Adam(trained, lr=lr, betas=_BETAS, fused=True)
    state: State | None = None
    for start in range(0, targets, chunk_tokens):
        ids = tokens.read(start, min(start + chunk_tokens, targets) + 1).astype(np.int64)
        # Not around `yield`: a suspended generator must not change the caller's mode.
        with torch.inference_mode(False):
            ids_1S = torch.from_numpy(ids).to(device)[None]
            inputs_1T, targets_1T = ids_1S[:, :-1], ids_1S[:, 1:]
            h_1TD, state = model(inputs_1T, None if bos is None else inputs_1T == bos, state)
            state = [type(block)(*(value.detach() for value in block)) for block in state]
        yield h_1TD.detach()[0], targets_1T[0]
        if start + chunk_tokens >= targets:
            return
        with torch.inference_mode(False):
            loss = model.loss(h_1TD, targets_1T, z_weight=0.0).total
            for parameter, gradient in zip(trained, torch.autograd.grad(loss, trained), strict=True):
                parameter.grad = gradient
            optimizer.step()
            optimizer.zero_grad()
