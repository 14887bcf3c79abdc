"""Negative log-likelihoods of tokens, computed in slices to bound the memory for logits.

Legend: N tokens (n of them in a slice), D d_model, V vocabulary, K temperatures.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float, Float32, Float64, Int64
from torch import Tensor

from jepamba.model import LanguageModel
from jepamba.ops.cross_entropy import token_nats

SLICE_LOGITS = {"cpu": 1 << 21, "cuda": 1 << 24}
"""Logits of a slice (fp32: 8 and 64 MB), independent of the vocabulary."""


def logit_slices(
    model: LanguageModel, h_ND: Float[Tensor, "N D"], targets_N: Int64[Tensor, " N"]
) -> Iterator[tuple[Float32[Tensor, "n V"], Int64[Tensor, " n"]]]:
    """Yield soft-capped fp32 logits and their targets in slices of at most `SLICE_LOGITS` logits."""
    rows = max(1, SLICE_LOGITS.get(h_ND.device.type, 1 << 21) // model.config.vocab_size)
    for start in range(0, len(targets_N), rows):
        yield model.logits(h_ND[start : start + rows]).float(), targets_N[start : start + rows]


def target_nats(
    model: LanguageModel, h_ND: Float[Tensor, "N D"], targets_N: Int64[Tensor, " N"], temperatures: Sequence[float]
) -> Float64[Tensor, "K N"]:
    """Return −ln p of each target at each of `temperatures`, in float64 on the CPU. Logits are computed once."""
    nats_KN = torch.empty(len(temperatures), len(targets_N), dtype=torch.float64)
    done = 0
    for logits_nV, targets_n in logit_slices(model, h_ND, targets_N):
        for index, temperature in enumerate(temperatures):
            nats_KN[index, done : done + len(targets_n)] = token_nats(logits_nV, targets_n, temperature)
        done += len(targets_n)
    return nats_KN
