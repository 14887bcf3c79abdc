"""Scores and latents of many documents at once: their windows are read in parallel lanes.

Legend: N positions, T tokens of a document, D d_model.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.errors import DivergedError
from jepamba.evaluate.accounting import text_bytes
from jepamba.evaluate.carried import carried_latents, even_lanes
from jepamba.evaluate.diagnostics import evaluating
from jepamba.evaluate.latents import layer_of
from jepamba.evaluate.likelihood import logit_slices, target_nats
from jepamba.evaluate.precision import scoring
from jepamba.evaluate.score import check_temperature, score_of, scored_targets
from jepamba.evaluate.stored import stored
from jepamba.evaluate.text_score import TextScore, text_score
from jepamba.evaluate.windows import batch_tokens
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.ops.cross_entropy import token_nats
from jepamba.text import Tokenizer


def score_documents(
    model: LanguageModel, documents: Sequence[Tokens], seq_len: int, *, carry: bool, reset: bool, temperature: float
) -> list[TextScore]:
    """Score each of `documents`, single documents in memory, in plain windows or with the state carried.

    Up to rounding they are the scores of `score_plain` and `score_carried`. Each document starts in the empty state;
    `reset` is only recorded in the scores. `seconds` is an equal share of the time.

    Raises `UserError` as these do.
    """
    check_temperature(temperature)
    if not documents:
        return []
    sizes = [text_bytes(tokens, scored_targets(model, tokens, seq_len, 0)) for tokens in documents]
    started = time.monotonic()
    nats_N = torch.empty(sum(map(len, documents)), dtype=torch.float64)
    ids = [tokens.read(0, len(tokens)) for tokens in documents]
    with scoring(model):
        for h_ND, targets_N, places_N in _latents(model, ids, documents[0].tokenizer, seq_len, carry):
            nats_N[torch.from_numpy(places_N)] = target_nats(model, h_ND, targets_N, (temperature,))[0]
    seconds = (time.monotonic() - started) / len(documents)
    found = []
    for tokens, size, of_document_N in zip(documents, sizes, nats_N.split([len(i) for i in ids]), strict=True):
        targets = len(tokens) - 1
        nats, mode = float(of_document_N[:targets].sum()), "carried" if carry else "plain"
        if not math.isfinite(nats):
            raise DivergedError
        score = score_of(nats, tokens, size, targets, mode=mode, reset=reset, temperature=temperature, seconds=seconds)
        found.append(text_score(score, tokens, of_document_N[:targets]))
    return found


def latents_of_documents(
    model: LanguageModel, documents: Sequence[Tokens], seq_len: int, *, heads: JepaHeads | None, carry: bool
) -> list[Tensor]:
    """Return a latent for every token of each of `documents`, (T, D) in fp32 on the CPU.

    Up to rounding they are those of `compute_latents`, which has none for the last token.
    """
    if not documents:
        return []
    # With one more token, which is only a target, the last one of a document has a latent too.
    ids = [np.append(tokens.read(0, len(tokens)), np.uint16(0)) for tokens in documents]
    latents_ND = torch.empty(sum(map(len, ids)), model.config.d_model)
    layer = layer_of(heads, model)
    with stored(model), evaluating(heads):
        for h_ND, _, places_N in _latents(model, ids, documents[0].tokenizer, seq_len, carry, layer):
            z_ND = h_ND if heads is None else heads.project(h_ND.unsqueeze(0))[0]
            if not bool(z_ND.isfinite().all()):
                raise DivergedError
            latents_ND[torch.from_numpy(places_N)] = z_ND.float().cpu()
    return [of_document_TD[:-1].clone() for of_document_TD in latents_ND.split([len(i) for i in ids])]


def score_continuations(
    model: LanguageModel,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    temperature: float,
) -> list[tuple[float, bool]]:
    """Score the ids of continuations, each after its own context of at least one id, with the state carried.

    Arguments: `pairs`: ids of a context and of its continuation.
    Returns: −ln p of each continuation, and whether all its tokens are the most likely ones.
    """
    ids = [np.array([*context, *continuation], dtype=np.uint16) for context, continuation in pairs]
    ends = np.cumsum([len(both) for both in ids]).tolist()
    # The places of the inputs whose targets are tokens of a continuation.
    spans = [(end - len(continuation) - 1, end - 1) for end, (_, continuation) in zip(ends, pairs, strict=True)]
    counted_N = np.zeros(ends[-1] if ends else 0, dtype=np.bool_)
    for start, stop in spans:
        counted_N[start:stop] = True
    nats_N, likeliest_N = np.zeros(len(counted_N)), np.ones(len(counted_N), dtype=np.bool_)
    with scoring(model):
        for h_ND, targets_N, places_N in _latents(model, ids, tokenizer, seq_len, carry=True):
            kept_N = torch.from_numpy(counted_N[places_N]).to(h_ND.device)
            done, places_N = 0, places_N[counted_N[places_N]]
            for logits_nV, targets_n in logit_slices(model, h_ND[kept_N], targets_N[kept_N]):
                places_n = places_N[done : done + len(targets_n)]
                nats_N[places_n] = token_nats(logits_nV, targets_n, temperature).double().cpu().numpy()
                likeliest_N[places_n] = (logits_nV.argmax(-1) == targets_n).cpu().numpy()
                done += len(targets_n)
    if not np.isfinite(nats_N).all():
        raise DivergedError
    return [(float(nats_N[start:stop].sum()), bool(likeliest_N[start:stop].all())) for start, stop in spans]


def _latents(
    model: LanguageModel,
    ids: list[NDArray[np.uint16]],
    tokenizer: Tokenizer,
    seq_len: int,
    carry: bool,
    layer: int = 0,
) -> Iterator[tuple[Tensor, Tensor, NDArray[np.int64]]]:
    """Yield (h_ND, targets_N, places_N) of `ids`, document after document. All but the last id of each are inputs."""
    spans, start = [], 0
    for of_document in ids:
        stop = start + len(of_document) - 1
        length = max(stop - start, 1) if carry else seq_len
        spans += [(at, min(at + length, stop)) for at in range(start, stop, length)]
        start = stop + 1
    if not spans:
        return iter(())
    stream = Tokens(ids, tokenizer)
    tokens_per_batch = batch_tokens(0, next(model.parameters()).device)
    lanes = even_lanes(spans, max(1, tokens_per_batch // min(seq_len, max(b - a for a, b in spans))))
    return carried_latents(model, stream, lanes, tokens_per_batch, reset=True, layer=layer)
