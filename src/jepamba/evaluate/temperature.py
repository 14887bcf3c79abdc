"""Calibrate the logit temperature on training text when a model is exported."""

from __future__ import annotations

import torch

from jepamba.data.tokens import Tokens
from jepamba.errors import UserError
from jepamba.evaluate.likelihood import target_nats
from jepamba.evaluate.precision import scoring
from jepamba.evaluate.windows import batches, plain_windows
from jepamba.model import LanguageModel
from jepamba.progress import Report

COARSE = (0.5, 0.7, 0.85, 0.95, 1.0, 1.1, 1.3, 1.5, 2.0)
"""Temperatures of the first search."""
FINE = (-0.06, -0.04, -0.02, 0.0, 0.02, 0.04, 0.06)
"""Offsets from the best coarse temperature in the second search."""
SMALLEST = 0.02
"""Lower bound of the second search."""


def calibrate(
    model: LanguageModel,
    tokens: Tokens,
    seq_len: int,
    count: int,
    *,
    reset: bool = True,
    tokens_per_batch: int = 0,
    progress: Report | None = None,
) -> float:
    """Return the temperature with the least cross-entropy on the first `count` targets of `tokens`, in plain windows.

    The latents are computed once and kept in memory (`count` × d_model numbers). The cross-entropy is a sum of
    logsumexp(logits/T) − target/T, hence convex in 1/T, so that descent along a grid finds the best grid point.
    Raises `UserError` if there is no target.
    """
    targets = min(count, len(tokens) - 1)
    if targets < 1:
        raise UserError("no training text to calibrate the temperature on")
    device = next(model.parameters()).device
    with scoring(model):
        latents: list[tuple[torch.Tensor, torch.Tensor]] = []
        done = 0
        for batch in batches(tokens, plain_windows(targets, seq_len), tokens_per_batch, reset, device):
            latents.append((model(batch.inputs_BT, batch.reset_BT)[0].flatten(0, 1), batch.targets_BT.flatten()))
            done += batch.targets_BT.numel()
            if progress is not None:
                progress(done, targets)
        best = _best(model, latents, COARSE, COARSE.index(1.0))
        fine = tuple(max(SMALLEST, round(best + step, 4)) for step in FINE)
        return _best(model, latents, fine, FINE.index(0.0))


def _best(
    model: LanguageModel,
    latents: list[tuple[torch.Tensor, torch.Tensor]],
    temperatures: tuple[float, ...],
    start: int,
) -> float:
    """Return the best of the ascending `temperatures`, by descent from index `start`."""
    costs: dict[int, float] = {}

    def measure(*indices: int) -> None:
        new = [index for index in indices if 0 <= index < len(temperatures) and index not in costs]
        if new:
            chosen = [temperatures[index] for index in new]
            total_K = torch.stack(
                [target_nats(model, h_ND, targets_N, chosen).sum(1) for h_ND, targets_N in latents]
            ).sum(0)
            costs.update(zip(new, total_K.tolist(), strict=True))

    best = start
    while True:
        measure(best - 1, best, best + 1)
        cheapest = min((index for index in (best, best - 1, best + 1) if index in costs), key=costs.__getitem__)
        if cheapest == best:
            return temperatures[best]
        best = cheapest
