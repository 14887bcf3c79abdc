"""What the latents are like, and how good the head's first guesses are: figures for the report, not for the score.

Legend: B windows, T tokens, D model width, E latent width, V vocabulary.
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
from jepamba.errors import UserError
from jepamba.evaluate.likelihood import logit_slices
from jepamba.evaluate.probe import probe, token_classes
from jepamba.evaluate.stored import stored
from jepamba.evaluate.windows import Window, Windows, batches
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel

TOPS = (1, 5, 10)


def diagnostics(
    model: LanguageModel,
    heads: JepaHeads | None,
    tokens: Tokens,
    seq_len: int,
    *,
    count: int = 65536,
    reset: bool = True,
    tokens_per_batch: int = 16384,
) -> dict[str, Any]:
    """Figures on the first `count` targets of `tokens`, whole windows only (one shorter window if there is no more).

    - `tokens`: targets looked at; `top1`, `top5`, `top10`: how often the target is among the head's first guesses.
    - `latents`, for z = projector(h), or h itself where `heads` is None (an artifact has none): `of` ("z" or "h");
      `norm`, mean Euclidean length; `within_sequence`, share of the variance that lies within windows (near 0: the
      latent is a constant of its window); `effective_rank`, exp of the entropy of the covariance's normalised
      eigenvalues (Roy & Vetterli 2007), out of `width`.
    - `prediction`, with heads only, a list by roll-out step k: `cosine` and `mse` between the prediction and z shifted
      by k, and `copy_cosine` and `copy_mse`, those of predicting that z stays as it is. Pairs that a document's start
      divides are left out when `reset`.
    - `probe`: see `probe.py`; the last fifth of the positions is held out.

    The weights are used as the artifact holds them. An empty dictionary for `count` = 0.
    Raises `UserError` if there is not a single target.
    """
    if count <= 0:
        return {}
    if len(tokens) < 2:
        raise UserError("nothing to look at: the text has fewer than 2 tokens")
    device = next(model.parameters()).device
    length = min(seq_len, len(tokens) - 1)
    windows = max(1, min(count, len(tokens) - 1) // length)
    plan = (Window(index * length, length, length) for index in range(windows))
    hits = dict.fromkeys(TOPS, 0)
    latents: list[Tensor] = []
    seen: list[Windows] = []
    gauge = _Prediction()
    with stored(model), _evaluating(heads):
        for batch in batches(tokens, plan, tokens_per_batch, reset, device):
            h_BTD, _ = model(batch.inputs_BT, batch.reset_BT)
            _count_hits(model, h_BTD, batch, hits)
            z_BTE = h_BTD.float() if heads is None else heads.project(h_BTD).float()
            if heads is not None:
                gauge.add(heads, z_BTE, batch.reset_BT)
            latents.append(z_BTE)
            seen.append(batch)
        z_BTE = torch.cat(latents)
        result: dict[str, Any] = {"tokens": windows * length}
        result |= {f"top{k}": hits[k] / (windows * length) for k in TOPS}
        result["latents"] = {"of": "h" if heads is None else "z", **_shape(z_BTE)}
        if heads is not None:
            result["prediction"] = gauge.result()
        result["probe"] = _probe(model, tokens, seen, z_BTE)
    return result


@contextmanager
def _evaluating(heads: JepaHeads | None) -> Iterator[None]:
    """Evaluation mode for `heads` (their BatchNorm would learn from what it sees), and back."""
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


def _shape(z_BTE: Float[Tensor, "B T E"]) -> dict[str, float]:
    """Norm, share of the variance within windows, and effective rank of the latents."""
    z_BTE = z_BTE.double()
    centred_NE = (z_BTE - z_BTE.mean((0, 1))).flatten(0, 1)
    within = (z_BTE - z_BTE.mean(1, keepdim=True)).square().mean()
    share = (torch.linalg.eigvalsh(centred_NE.T @ centred_NE).clamp_min(0) + 1e-30).cpu()
    share = share / share.sum()
    return {
        "norm": float(z_BTE.norm(dim=-1).mean()),
        "within_sequence": float(within / centred_NE.square().mean().clamp_min(1e-12)),
        "effective_rank": float(torch.exp(-(share * share.log()).sum())),
        "width": z_BTE.shape[-1],
    }


class _Prediction:
    """Running means, by roll-out step, of how near the predictor comes to the latents ahead."""

    def __init__(self) -> None:
        self.sums: list[dict[str, float]] = []
        self.pairs: list[int] = []

    def add(self, heads: JepaHeads, z_BTE: Float[Tensor, "B T E"], reset_BT: Bool[Tensor, "B T"] | None) -> None:
        """Take in a batch; pairs of positions that a document's start divides do not count."""
        document_BT = None if reset_BT is None else reset_BT.cumsum(1)
        for index, ahead_BTE in enumerate(heads.rollout(z_BTE)):
            k = index + 1
            if k >= z_BTE.shape[1]:
                break
            if index == len(self.sums):
                self.sums.append(dict.fromkeys(("cosine", "mse", "copy_cosine", "copy_mse"), 0.0))
                self.pairs.append(0)
            target, guess, copy = z_BTE[:, k:], ahead_BTE[:, :-k].float(), z_BTE[:, :-k]
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
        """The means of each step."""
        return [
            {"step": index + 1, **{name: total / max(pairs, 1) for name, total in sums.items()}}
            for index, (sums, pairs) in enumerate(zip(self.sums, self.pairs, strict=True))
        ]


def _probe(model: LanguageModel, tokens: Tokens, seen: list[Windows], z_BTE: Tensor) -> dict[str, float]:
    inputs_N = torch.cat([batch.inputs_BT.flatten() for batch in seen])
    targets_N = torch.cat([batch.targets_BT.flatten() for batch in seen])
    held_out = len(inputs_N) // 5
    if held_out == 0:
        return {}
    embedding_VE = model.token_embed.effective_weight()
    classes_V = token_classes(tokens.tokenizer, model.config.vocab_size).to(targets_N.device)
    return probe(z_BTE.flatten(0, 1), embedding_VE[inputs_N], embedding_VE[targets_N], classes_V[targets_N], held_out)
