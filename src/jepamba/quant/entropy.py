"""How many bits values need: order-0 entropy, the least that a codec blind to context can reach."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def entropy(counts: NDArray[np.integer]) -> float:
    """Order-0 entropy in bits per symbol of symbols that occur `counts` (N,) times: −Σ p·log2 p (Shannon 1948)."""
    p = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(p * np.log2(p)).sum()))


def entropy_bits(streams: Mapping[str, Tensor]) -> float:
    """Order-0 entropy, in bits in all, of the streams of one tensor: each a source of its own, its wider values taken
    apart into byte planes. The cost of telling the decoder the probabilities is left out."""
    return sum(_bits(value) for value in streams.values())


def _bits(value: Tensor) -> float:
    planes = value.contiguous().reshape(-1, 1).view(torch.uint8)
    counts = [torch.bincount(plane, minlength=256).cpu().numpy() for plane in planes.T]
    return planes.shape[0] * sum(entropy(count) for count in counts)
