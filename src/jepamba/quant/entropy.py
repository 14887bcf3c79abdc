"""Order-0 entropy: the lower bound of a codec without context."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def entropy(counts: NDArray[np.integer]) -> float:
    """Order-0 entropy in bits per symbol, −Σ p·log2 p (Shannon 1948), from the counts (N,) of each symbol."""
    p = counts[counts > 0] / counts.sum()
    return max(0.0, float(-(p * np.log2(p)).sum()))


def entropy_bits(streams: Mapping[str, Tensor]) -> float:
    """Total order-0 entropy in bits of the streams of one tensor, without the cost of storing the probabilities.

    Each stream is its own source; values of several bytes are split into byte planes.
    """
    return sum(_bits(value) for value in streams.values())


def _bits(value: Tensor) -> float:
    planes = value.contiguous().reshape(-1, 1).view(torch.uint8)
    counts = [torch.bincount(plane, minlength=256).cpu().numpy() for plane in planes.T]
    return planes.shape[0] * sum(entropy(count) for count in counts)
