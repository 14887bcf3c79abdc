"""The forward and backward passes of the Epps–Pulley statistic in plain PyTorch, one knot at a time.

The knots are evenly spaced, so e^{i t_{k+1} x} is e^{i t_k x} rotated by the angle Δt·x. This needs two sines and
cosines instead of K, and no tensor of N × M × K values.

Legend: S samples, N values of a sample, M directions, K knots.
"""

from __future__ import annotations

import torch
from torch import Tensor


def sums_torch(x_SNM: Tensor, t_K: Tensor) -> Tensor:
    """Return Σ_n cos t_k x_n and Σ_n sin t_k x_n (S, K, 2, M)."""
    step = t_K[1] - t_K[0]
    cos, sin = torch.cos(t_K[0] * x_SNM), torch.sin(t_K[0] * x_SNM)
    turn_cos, turn_sin = torch.cos(step * x_SNM), torch.sin(step * x_SNM)
    sums = []
    for k in range(len(t_K)):
        if k > 0:
            cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        sums.append(torch.stack([cos.sum(1), sin.sum(1)], dim=1))
    return torch.stack(sums, dim=1)


def gradient_torch(x_SNM: Tensor, t_K: Tensor, a_KSM: Tensor, b_KSM: Tensor) -> Tensor:
    """Return Σ_k a_k cos t_k x − b_k sin t_k x (S, N, M)."""
    step = t_K[1] - t_K[0]
    cos, sin = torch.cos(t_K[0] * x_SNM), torch.sin(t_K[0] * x_SNM)
    turn_cos, turn_sin = torch.cos(step * x_SNM), torch.sin(step * x_SNM)
    result = torch.zeros_like(x_SNM)
    for k in range(len(t_K)):
        if k > 0:
            cos, sin = cos * turn_cos - sin * turn_sin, sin * turn_cos + cos * turn_sin
        result += a_KSM[k].unsqueeze(1) * cos - b_KSM[k].unsqueeze(1) * sin
    return result
