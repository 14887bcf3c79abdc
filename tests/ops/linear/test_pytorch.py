"""Tests of the PyTorch product with a scaled and padded matrix against its formula in float64: output and gradients."""

import pytest
import torch
from torch import Tensor

from jepamba.ops.linear.pytorch import linear_torch
from ops.compare import compare, random


@pytest.mark.parametrize("tokens", [3, 100])
@pytest.mark.parametrize("rows", [0, 24, 48])
def test_fp32_equals_the_formula(tokens: int, rows: int) -> None:
    """Few tokens have their outputs scaled, many the matrix."""
    x, w, scale = random(2, tokens, 40, seed=0), random(24, 40, seed=1), random(24, seed=2)

    def formula(x: Tensor, w: Tensor, scale: Tensor) -> Tensor:
        product = (x.unsqueeze(-2) * w).sum(-1) * scale
        return torch.cat([product, product.new_zeros(2, tokens, max(rows - 24, 0))], dim=-1)

    compare(lambda *v: linear_torch(*v, rows), formula, [x, w, scale], 1e-6)
    compare(lambda *v: linear_torch(*v, None, rows), lambda x, w: formula(x, w, w.new_ones(24)), [x, w], 1e-6)
