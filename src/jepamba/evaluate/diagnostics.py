"""Diagnostics for the report: the geometry of the latents, the predictor's error, and the head's top-k accuracy.

Legend: B windows, T tokens, D d_model, E latent dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from jepamba.data.tokens import Tokens
from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.likelihood import logit_slices
from jepamba.evaluate.probe import probe, token_classes
from jepamba.evaluate.stored import stored
from jepamba.evaluate.windows import Window, Windows, batches
from jepamba.jepa import JepaHeads, trailing_mean
from jepamba.model import LanguageModel
from jepamba.progress import Report

TOPS = (1, 5, 10)


def diagnostics(
    model: LanguageModel,
    heads: JepaHeads | None,
    tokens: Tokens,
    seq_len: int,
    *,
    count: int = 65536,
    reset: bool = True,
    tokens_per_batch: int = 0,
    progress: Report | None = None,
) -> dict[str, Any]:
    """Compute diagnostics on the first `count` targets of `tokens`, with the weights as the artifact holds them.

    Only whole windows are used, except for a text shorter than one window.

    Returns:
        A dictionary with the entries below. It is empty if `count` is 0.

        - `tokens`: number of targets. `top1`, `top5`, `top10`: fraction of targets among the k most likely tokens.
        - `latents`, of z, or of h if `heads` is None: `of` ("z" or "h"); `norm`, mean Euclidean norm;
          `mean_share`, squared norm of the mean latent relative to the mean squared norm (near 1, latents differ
          little from a constant vector); `within_sequence`, fraction of the variance that lies within windows (near 0,
          latents are constant in each window); `effective_rank`, exp of the entropy of the covariance's normalized
          eigenvalues (Roy & Vetterli 2007); `width`, its maximum.
        - `h`, only with `heads`: the same of h, which the head reads.
        - `prediction`, only with `heads`, a list by roll-out step k: `cosine` and `mse` between the prediction and
          its target, z shifted by k (with `jepa.target_tokens` a mean); `copy_cosine` and `copy_mse`, the same for z
          itself as the prediction. With `reset`, pairs in different documents do not count.
        - `probe`: see `probe.py`. The last fifth of the positions is held out.

    Raises `UserError` if there is no target.
    """
    if count <= 0:
        return {}
    if len(tokens) < 2:
        raise UserError("nothing to diagnose: the text has fewer than 2 tokens")
    device = next(model.parameters()).device
    length = min(seq_len, len(tokens) - 1)
    windows = max(1, min(count, len(tokens) - 1) // length)
    plan = (Window(index * length, length, length) for index in range(windows))
    hits = dict.fromkeys(TOPS, 0)
    latents: list[Tensor] = []
    read_by_head: list[Tensor] = []
    read: list[Windows] = []
    prediction = _PredictionError()
    with stored(model), evaluating(heads):
        for batch in batches(tokens, plan, tokens_per_batch, reset, device):
            found, _ = model.activations(batch.inputs_BT, batch.reset_BT)
            _count_hits(model, found.h_BTD, batch, hits)
            z_BTE = found.h_BTD.float() if heads is None else heads.latents(found).float()
            if heads is not None:
                prediction.add(heads, z_BTE, heads.actions(found), batch.reset_BT)
                read_by_head.append(found.h_BTD.float())
            latents.append(z_BTE)
            read.append(batch)
            if progress is not None:
                progress(sum(len(z) for z in latents), windows)
        z_BTE = torch.cat(latents)
        result: dict[str, Any] = {"tokens": windows * length}
        result |= {f"top{k}": hits[k] / (windows * length) for k in TOPS}
        result["latents"] = {"of": "h" if heads is None else "z", **latent_statistics(z_BTE)}
        if heads is not None:
            result["h"] = latent_statistics(torch.cat(read_by_head))
            result["prediction"] = prediction.result()
        result["probe"] = _probe(model, tokens, read, z_BTE)
    return result


@contextmanager
def evaluating(heads: JepaHeads | None) -> Iterator[None]:
    """Set `heads` to evaluation mode, so that BatchNorm statistics do not change, and restore the mode afterwards."""
    training = heads is not None and heads.training
    if heads is not None:
        heads.eval()
    try:
        yield
    finally:
        if heads is not None:
            heads.train(training)


def _count_hits(model: LanguageModel, h_BTD: Float[Tensor, "B T D"], batch: Windows, hits: dict[int, int]) -> None:
    for logits_nV, targets_n in logit_slices(model, h_BTD.flatten(0, 1), batch.targets_BT.flatten()):
        ranked = logits_nV.topk(min(max(TOPS), logits_nV.shape[-1]), dim=-1).indices == targets_n.unsqueeze(-1)
        for k in TOPS:
            hits[k] += int(ranked[:, :k].any(-1).sum())


def latent_statistics(z_BTE: Float[Tensor, "B T E"]) -> dict[str, float]:
    """Compute norm, share of the mean latent, fraction of the variance within windows, and effective rank."""
    z_BTE = z_BTE.double()
    mean_E = z_BTE.mean((0, 1))
    within = (z_BTE - z_BTE.mean(1, keepdim=True)).square().mean()
    total = (z_BTE - mean_E).square().mean()
    spectrum_E = spectrum(z_BTE)
    return {
        "norm": float(z_BTE.norm(dim=-1).mean()),
        "mean_share": float(mean_E.square().mean() / z_BTE.square().mean().clamp_min(1e-12)),
        "within_sequence": float(within / total.clamp_min(1e-12)),
        "effective_rank": float(torch.exp(-(spectrum_E * spectrum_E.log()).sum())),
        "width": z_BTE.shape[-1],
    }


def spectrum(z_BTE: Float[Tensor, "B T E"]) -> Float[Tensor, " E"]:
    """Return the eigenvalues of the latents' covariance over all positions, in ascending order and with sum 1.

    Raises `DivergedError` if the latents are not finite, or too large.
    """
    z_NE = z_BTE.double().flatten(0, 1)
    centred_NE = z_NE - z_NE.mean(0)
    covariance_EE = centred_NE.T @ centred_NE
    if not covariance_EE.isfinite().all():
        raise DivergedError
    spectrum_E: Tensor = (torch.linalg.eigvalsh(covariance_EE).clamp_min(0) + 1e-30).cpu()
    return spectrum_E / spectrum_E.sum()


class _PredictionError:
    """Mean cosine and squared error between predicted and actual latents, by roll-out step."""

    def __init__(self) -> None:
        self.sums: list[dict[str, float]] = []
        self.pairs: list[int] = []

    def add(
        self,
        heads: JepaHeads,
        z_BTE: Float[Tensor, "B T E"],
        action_BTD: Float[Tensor, "B T D"] | None,
        reset_BT: Bool[Tensor, "B T"] | None,
    ) -> None:
        """Add a batch. Pairs of positions in different documents do not count."""
        document_BT = None if reset_BT is None else reset_BT.cumsum(1)
        targets_BTE = trailing_mean(z_BTE, heads.config.target_tokens)
        for index, predicted_BTE in enumerate(heads.rollout(z_BTE, action_BTD)):
            k = (index + 1) * heads.config.target_tokens
            if k >= z_BTE.shape[1]:
                break
            if index == len(self.sums):
                self.sums.append(dict.fromkeys(("cosine", "mse", "copy_cosine", "copy_mse"), 0.0))
                self.pairs.append(0)
            target, guess, copy = targets_BTE[:, k:], predicted_BTE[:, :-k].float(), z_BTE[:, :-k]
            if document_BT is None:
                same = torch.ones(target.shape[:2], dtype=torch.bool, device=target.device)
            else:
                same = document_BT[:, k:] == document_BT[:, :-k]
            target, guess, copy = target[same], guess[same], copy[same]
            self.pairs[index] += len(target)
            for name, value in (("", guess), ("copy_", copy)):
                self.sums[index][name + "cosine"] += float(F.cosine_similarity(value, target, dim=-1).double().sum())
                self.sums[index][name + "mse"] += float((value - target).double().square().mean(-1).sum())

    def result(self) -> list[dict[str, float]]:
        """Return the means of each roll-out step."""
        return [
            {"step": index + 1, **{name: total / max(pairs, 1) for name, total in sums.items()}}
            for index, (sums, pairs) in enumerate(zip(self.sums, self.pairs, strict=True))
        ]


def _probe(model: LanguageModel, tokens: Tokens, windows: list[Windows], z_BTE: Tensor) -> dict[str, float]:
    inputs_N = torch.cat([batch.inputs_BT.flatten() for batch in windows])
    targets_N = torch.cat([batch.targets_BT.flatten() for batch in windows])
    held_out = len(inputs_N) // 5
    if held_out == 0:
        return {}
    embedding_VE = model.token_embed.effective_weight()
    classes_V = token_classes(tokens.tokenizer, model.config.vocab_size).to(targets_N.device)
    return probe(z_BTE.flatten(0, 1), embedding_VE[inputs_N], embedding_VE[targets_N], classes_V[targets_N], held_out)
