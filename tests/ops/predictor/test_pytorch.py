"""Tests of the predictor's PyTorch operators in fp32 against their formulas in float64: outputs and all gradients."""

import math

import pytest
import torch
from torch import Tensor

from jepamba.ops.predictor.pytorch import bias_gelu_torch, shifted_error_torch
from ops.compare import compare, random


def test_bias_gelu() -> None:
    def formula(u: Tensor, bias: Tensor) -> Tensor:
        return (u + bias) * (1 + torch.special.erf((u + bias) / math.sqrt(2))) / 2

    compare(bias_gelu_torch, formula, [random(2, 9, 40, seed=0), random(40, seed=1)], 1e-6)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_shifted_error(k: int) -> None:
    weight = random(2, 9, seed=2).abs()
    weight[:, 9 - k :] = 0

    def formula(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        error = sum(
            weight[b, t].double() * ((prediction[b, t] - target[b, t + k]) ** 2).sum()
            for b in range(2)
            for t in range(9 - k)
        )
        assert isinstance(error, Tensor)
        return error, prediction, target

    inputs = [random(2, 9, 40, seed=s) for s in range(2)]
    compare(lambda p, z: shifted_error_torch(p, z, weight, k), formula, inputs, 1e-6)
