"""Tests of the norms' C++ kernels against PyTorch in float64: outputs and all gradients."""

import pytest
import torch
from torch import Tensor

from jepamba.ops import norms
from jepamba.ops.norms.cpp import CppAddNorm, CppMixNorm, CppRelu2Norm, is_supported
from ops.compare import compare
from ops.cpp_cases import DTYPES, needs_compiler, random

pytestmark = [needs_compiler, pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)]
SHAPE = 3, 25, 48


def test_add_norm(dtype: torch.dtype, tolerance: float) -> None:
    x, branch = (random(*SHAPE, dtype=dtype, seed=seed) for seed in range(2))
    assert is_supported(x)
    for used in (None, (0,), (1,)):
        compare(CppAddNorm.apply, norms.add_norm, [x, branch], tolerance, used)
    compare(lambda v: CppAddNorm.apply(v, None)[1], norms.rms, [x], tolerance)


def test_mix_norm(dtype: torch.dtype, tolerance: float) -> None:
    x, x0, skip = (random(*SHAPE, dtype=dtype, seed=seed) for seed in range(3))
    mix, weight = random(2, SHAPE[-1], seed=3), random(SHAPE[-1], seed=4)

    def kernels(*v: Tensor) -> object:
        return CppMixNorm.apply(*(v if len(v) == 5 else (*v, None, None)))

    for used in (None, (0,), (1,), (1, 2), (1, 3), (2,)):
        compare(kernels, norms.mix_norm, [x, x0, mix, skip, weight], tolerance, used)
        compare(kernels, norms.mix_norm, [x, x0, mix], tolerance, used)


def test_relu2_norm(dtype: torch.dtype, tolerance: float) -> None:
    u = random(*SHAPE, dtype=dtype, seed=0)
    compare(CppRelu2Norm.apply, norms.relu2_norm, [u], tolerance)
    zeros = torch.zeros(2, 16, dtype=dtype, requires_grad=True)
    (grad,) = torch.autograd.grad(CppRelu2Norm.apply(zeros).sum(), zeros)
    assert not grad.any()


def test_a_broken_value_breaks_its_row(dtype: torch.dtype, tolerance: float) -> None:
    whole, mix = random(3, 48, dtype=dtype, seed=0), torch.ones(2, 48)
    broken = whole.clone()
    broken[1, 7] = float("nan")
    for normed in (
        CppRelu2Norm.apply(broken),
        CppAddNorm.apply(whole, broken)[1],
        CppMixNorm.apply(whole, broken, mix, None, None)[1],
    ):
        assert normed.isnan().any(1).tolist() == [False, True, False]
