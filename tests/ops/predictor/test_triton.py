"""Tests of the predictor's kernels against PyTorch in float64: outputs and all gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.ops import predictor
from jepamba.ops.predictor.triton import BiasGelu, ShiftedError
from ops.compare import DEVICE, DTYPES, compare, random


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", [(3, 5, 24), (1, 1, 700), (2, 9, 40)], ids=str)
def test_bias_gelu(shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
    u, bias = random(*shape, dtype=dtype, seed=0), random(shape[-1], seed=1)
    compare(BiasGelu.apply, predictor.bias_gelu, [u, bias], tolerance)


def test_gelu_far_out() -> None:
    """Inputs with Φ near 0 and 1. The tolerance is 7.5e-8 of the input (the formula) plus fp32 rounding."""
    u, bias = torch.linspace(-12, 12, 24 * 33, device=DEVICE).view(33, 24), torch.zeros(24, device=DEVICE)
    truth = torch.nn.functional.gelu(u.double())
    assert ((BiasGelu.apply(u, bias) - truth).abs() <= 3e-7 * u.double().abs()).all()


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(("shape", "k"), [((2, 5, 24), 0), ((3, 7, 24), 1), ((2, 9, 40), 3), ((1, 4, 16), 3)], ids=str)
def test_shifted_error(shape: tuple[int, int, int], k: int, dtype: torch.dtype, tolerance: float) -> None:
    prediction, target = (random(*shape, dtype=dtype, seed=s) for s in range(2))
    weight = random(*shape[:2], seed=2).abs()
    weight[:, shape[1] - k :] = 0
    weight[0, 0] = 0

    def twice(function: Callable[..., tuple[Tensor, Tensor, Tensor]], weight: Tensor) -> Callable[..., Any]:
        """The error of the prediction and target that the first call returns, and of their doubles."""

        def run(p: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            error, p, z = function(p, z, weight, k)
            return function(2 * p, z, weight, k)[0] + error, p, z

        return run

    kernels, plain = twice(ShiftedError.apply, weight), twice(predictor.shifted_error, weight.double())
    for used in (None, (0,), (1, 2)):
        compare(kernels, plain, [prediction, target], tolerance, used)
    detached = target.detach()
    compare(lambda p: kernels(p, detached)[0], lambda p: plain(p, detached.double())[0], [prediction], tolerance)
    assert prediction.device.type == DEVICE
