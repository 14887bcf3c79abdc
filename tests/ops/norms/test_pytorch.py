"""Tests of the PyTorch norms in fp32 against their formulas in float64: outputs and all gradients."""

import math

import pytest
import torch
from torch import Tensor

from jepamba.ops.norms.pytorch import add_norm_torch, gated_norm_torch, mix_norm_torch, relu2_norm_torch, rms_torch
from ops.compare import compare, random


def root_mean_square_norm(x: Tensor, eps: float = 1e-6) -> Tensor:
    return x / ((x * x).mean(-1, keepdim=True) + eps).sqrt()


def test_fp32_equals_the_formulas() -> None:
    x, y, z = (random(2, 9, 40, seed=s) for s in range(3))
    mix, weight = random(2, 40, seed=3), random(40, seed=4)

    def mixed(x: Tensor, x0: Tensor, mix: Tensor, skip: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        total = mix[0] * (x + weight * skip) + mix[1] * x0
        return total, root_mean_square_norm(total), x0, x

    def gated(y: Tensor, z: Tensor, weight: Tensor) -> Tensor:
        return weight * root_mean_square_norm(y * z / (1 + torch.exp(-z)), 1e-5)

    compare(rms_torch, root_mean_square_norm, [x], 1e-6)
    compare(add_norm_torch, lambda x, y: (x + y, root_mean_square_norm(x + y)), [x, y], 1e-6)
    compare(mix_norm_torch, mixed, [x, y, mix, z, weight], 1e-6)
    compare(mix_norm_torch, lambda x, y, mix: mixed(x, y, mix, y, torch.zeros_like(y)), [x, y, mix], 1e-6)
    compare(gated_norm_torch, gated, [y, z, weight], 1e-6)
    compare(relu2_norm_torch, lambda u: root_mean_square_norm(u.clamp_min(0) ** 2), [x], 1e-6)


def test_rms_has_its_epsilon_and_no_weight() -> None:
    x = torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-3, -1e-3]], dtype=torch.float64)
    expected = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt()
    assert torch.allclose(rms_torch(x), expected, rtol=1e-12)
    assert rms_torch(x)[2, 0].item() == pytest.approx(1 / math.sqrt(2), rel=1e-6)
