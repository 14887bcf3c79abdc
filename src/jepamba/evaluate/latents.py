"""The latents of a text by position, as a safetensors file for analyses outside this package.

Legend: N tokens, B windows, T tokens of a window, D d_model, E latent dimension (= D).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate.carried import carried_latents, documents
from jepamba.evaluate.diagnostics import evaluating, latent_statistics, spectrum
from jepamba.evaluate.score import scored_targets
from jepamba.evaluate.stored import stored
from jepamba.evaluate.windowed import windowed_latents
from jepamba.evaluate.windows import plain_windows
from jepamba.io import atomic_write
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.progress import Report


class Latents(NamedTuple):
    """The latents of the first N tokens of a text, in its order, on the CPU."""

    latents: Tensor
    """(N, D): h, or z, of the model that has read the token of the row."""
    tokens: Tensor
    """(N,) int32: token ids."""
    positions: Tensor
    """(N,) int32: position in the document; 0 is its start (BOS), or the start of the text."""
    documents: Tensor
    """(N,) int32: number of the document, from 0."""


def compute_latents(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    *,
    heads: JepaHeads | None = None,
    carry: bool = False,
    reset: bool = True,
    limit: int = 0,
    dtype: torch.dtype = torch.float32,
    tokens_per_batch: int = 0,
    progress: Report | None = None,
) -> Latents:
    """Compute the latents that `score_plain` predicts the targets from, or with `carry` those of `score_carried`.

    Products are fp32 on a GPU too, where those scores use TF32.

    The last token of a text has no target, and no latent here.

    Arguments:
        heads: Heads whose projector gives z. None: the latents are h.
        limit: Number of tokens, from the start of the text. 0: all.
        dtype: Type of the latents in memory.
        Others: see `score_plain`.

    Raises:
        UserError: The text is empty, its tokenizer has more symbols than the model, `limit` is negative, or the
            heads are those of a deeper model.
    """
    if limit < 0:
        raise UserError(f"a limit of {limit} tokens: must be 0 (all) or more")
    count = scored_targets(model, tokens, seq_len, limit)
    bos = tokens.bos_id if reset else None
    layer = layer_of(heads, model)
    lanes = [documents(tokens, bos, count)]
    batches: Iterator[tuple[Any, ...]] = (
        carried_latents(model, tokens, lanes, tokens_per_batch, bos is not None, layer)
        if carry
        else windowed_latents(model, tokens, plain_windows(count, seq_len), tokens_per_batch, reset, layer)
    )
    latents_ND = torch.empty(count, model.config.d_model, dtype=dtype)
    done = 0
    with stored(model), evaluating(heads):
        for h_ND, *_ in batches:
            latents_ND[done : done + len(h_ND)] = h_ND if heads is None else heads.project(h_ND.unsqueeze(0))[0]
            done += len(h_ND)
            if progress is not None:
                progress(done, count)
    if done != count:
        raise AssertionError(f"{done} latents of {count}")
    if not bool(latents_ND.isfinite().all()):
        raise UserError(f"some latents are not finite, or outside the range of {dtype}: use another type")
    starts, stops = np.array(documents(tokens, tokens.bos_id, count)).T
    lengths = stops - starts
    columns = (
        tokens.read(0, count),
        np.arange(count) - np.repeat(starts, lengths),
        np.repeat(np.arange(len(starts)), lengths),
    )
    return Latents(latents_ND, *(torch.from_numpy(column.astype(np.int32)) for column in columns))


def layer_of(heads: JepaHeads | None, model: LanguageModel) -> int:
    """Return the block after which `heads` read latents of `model`; 0: h. Raises `UserError` if it has fewer blocks."""
    layer = 0 if heads is None else heads.config.layer
    if layer > model.config.n_layer:
        raise UserError(f"these heads read the latents after {layer:,} blocks, the model has {model.config.n_layer}")
    return layer


def save_latents(path: Path, latents: Latents, metadata: Mapping[str, str]) -> int:
    """Write `latents` to `path` atomically, as a safetensors file with `metadata`. Returns its size in bytes."""
    content = save(latents._asdict(), dict(metadata))
    atomic_write(path, content)
    return len(content)


def measure_latents(latents_ND: Tensor, seq_len: int) -> dict[str, Any]:
    """Measure latents in adjacent windows of `seq_len`, without a last, shorter one after others.

    Returns:
        The entries `norm`, `mean_share`, `within_sequence`, `effective_rank` and `width` (see `diagnostics`), and
        `spectrum`, the eigenvalues of the covariance, largest first, with sum 1.
    """
    length = min(seq_len, len(latents_ND))
    windows = len(latents_ND) // length
    latents_BTD = latents_ND[: windows * length].unflatten(0, (windows, length))
    return {**latent_statistics(latents_BTD), "spectrum": spectrum(latents_BTD).flip(0).tolist()}
