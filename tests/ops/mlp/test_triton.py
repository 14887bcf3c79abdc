"""Tests of the fused MLP against its definition in float64: output and all gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.mlp import triton as fused
from jepamba.ops.mlp.triton import MlpResidual, Tile
from jepamba.ops.norms.pytorch import rms_torch
from ops.compare import DEVICE, DTYPES, compare, random

SMALL = Tile(rows=32, columns=32, depth=16, num_warps=4)
SHAPES = [(2, 17, 24, 72), *([(4, 700, 640, 2560)] if DEVICE == "cuda" else [])]


def plain(residual: Tensor, x: Tensor, up_MD: Tensor, down_DM: Tensor, scale_D: Tensor) -> Tensor:
    return residual + scale_D * F.linear(rms_torch(F.relu(F.linear(x, up_MD)).square()), down_DM)


def inputs(B: int, T: int, D: int, M: int, dtype: torch.dtype) -> list[Tensor]:
    residual, x = (random(B, T, D, dtype=dtype, seed=seed) for seed in range(2))
    up_MD, down_DM = random(M, D, dtype=dtype, seed=2) * D**-0.5, random(D, M, dtype=dtype, seed=3) * M**-0.5
    return [residual, x, up_MD, down_DM, random(D, seed=4)]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_its_definition(
    shape: tuple[int, int, int, int], dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that are no multiple of a tile, and several tiles a program."""
    if DEVICE == "cpu" or dtype == torch.float32:
        monkeypatch.setattr(fused, "UP", SMALL)
        monkeypatch.setattr(fused, "DOWN_GRADIENT", SMALL)
    # Of relu² and the sum of its gradient, bf16 keeps fewer bits than a norm alone.
    compare(MlpResidual.apply, plain, inputs(*shape, dtype), tolerance * (2 if dtype == torch.bfloat16 else 1))


def test_a_row_whose_hidden_values_are_zero_has_finite_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "UP", SMALL)
    monkeypatch.setattr(fused, "DOWN_GRADIENT", SMALL)
    residual, x, *weights = inputs(1, 3, 24, 72, torch.float32)
    x[0, 1] = 0
    leaves = [value.requires_grad_() for value in (residual, x, *weights)]
    out = MlpResidual.apply(*leaves)
    assert torch.equal(out[0, 1], residual[0, 1])
    for gradient in torch.autograd.grad(out.sum(), leaves):
        assert gradient.isfinite().all()


def test_a_broken_value_breaks_its_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "UP", SMALL)
    residual, x, *weights = inputs(1, 3, 24, 72, torch.float32)
    x[0, 1, 5] = float("nan")
    assert MlpResidual.apply(residual, x, *weights).isnan().any(2).tolist() == [[False, True, False]]
