"""Tests of the norm kernels against PyTorch in float64: outputs and all gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepamba.ops import norms
from jepamba.ops.norms.triton import AddNorm, GatedNorm, MixNorm, Relu2Norm
from ops.compare import DEVICE, DTYPES, compare, random

SHAPES = [
    (1, 2, 200),
    *(pytest.param(shape, marks=pytest.mark.slow) for shape in [(3, 5, 24), (1, 1, 64), (2, 9, 40)]),
    *([(4, 700, 640), (2, 33, 2560)] if DEVICE == "cuda" else []),
]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
class TestEqualPlain:
    def test_add_norm(self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
        x, branch = (random(*shape, dtype=dtype, seed=s) for s in range(2))
        for used in (None, (0,), (1,)):
            compare(lambda *v: AddNorm.apply(*v, norms.RMS_EPS), norms.add_norm, [x, branch], tolerance, used)
        compare(lambda v: AddNorm.apply(v, None, norms.RMS_EPS)[1], norms.rms, [x], tolerance)

    @pytest.mark.slow
    def test_mix_norm(self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
        D = shape[-1]
        x, x0, skip = (random(*shape, dtype=dtype, seed=s) for s in range(3))
        mix, weight = random(2, D, seed=3), random(D, seed=4)

        def kernels(*v: Tensor) -> object:
            with_skip = v if len(v) == 5 else (*v, None, None)
            return MixNorm.apply(*with_skip, norms.RMS_EPS)

        for used in (None, (0,), (1,), (1, 2), (1, 3)):
            compare(kernels, norms.mix_norm, [x, x0, mix, skip, weight], tolerance, used)
            compare(kernels, norms.mix_norm, [x, x0, mix], tolerance, used)

    def test_mix_norm_of_slices(self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
        both = random(*shape, 2, dtype=dtype, seed=0)
        mix = random(2, shape[-1], seed=3)

        def kernels(both: Tensor, mix: Tensor) -> object:
            return MixNorm.apply(both[..., 0], both[..., 1], mix, None, None, norms.RMS_EPS)

        def plain(both: Tensor, mix: Tensor) -> object:
            return norms.mix_norm(both[..., 0], both[..., 1], mix)

        compare(kernels, plain, [both, mix], tolerance)

    def test_mix_norm_adds_up_what_its_inputs_get(
        self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float
    ) -> None:
        D = shape[-1]
        x, x0 = (random(*shape, dtype=dtype, seed=s) for s in range(2))
        mix = random(2, D, seed=3)

        def twice(function: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Tensor]:
            def run(x: Tensor, x0: Tensor, mix: Tensor) -> Tensor:
                mixed, _, x0, x = function(x, x0, mix)
                return function(mixed, x0, mix)[1] + x

            return run

        compare(
            twice(lambda x, x0, mix: MixNorm.apply(x, x0, mix, None, None, norms.RMS_EPS)),
            twice(norms.mix_norm),
            [x, x0, mix],
            tolerance,
        )

    def test_gated_norm(self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
        y, z = (random(*shape, dtype=dtype, seed=s) for s in range(2))
        weight = random(shape[-1], seed=2)
        compare(lambda *v: GatedNorm.apply(*v, norms.GATED_NORM_EPS), norms.gated_norm, [y, z, weight], tolerance)

    def test_relu2_norm(self, shape: tuple[int, ...], dtype: torch.dtype, tolerance: float) -> None:
        u = random(*shape, dtype=dtype, seed=0)
        compare(lambda v: Relu2Norm.apply(v, norms.RMS_EPS), norms.relu2_norm, [u], tolerance)


def test_a_row_of_zeros_has_finite_gradients() -> None:
    u = torch.zeros(2, 3, 24, device=DEVICE, requires_grad=True)
    (grad,) = torch.autograd.grad(Relu2Norm.apply(u, norms.RMS_EPS).sum(), u)
    assert torch.equal(grad, torch.zeros_like(grad))


def test_a_broken_value_breaks_its_row() -> None:
    """NaN propagates as in PyTorch, also through the squared ReLU, where a comparison could drop it."""
    whole, other = (random(3, 40, seed=s) for s in range(2))
    broken = whole.clone()
    broken[1, 7] = float("nan")
    weight, mix = torch.ones(40, device=DEVICE), torch.ones(2, 40, device=DEVICE)
    for outputs in (
        Relu2Norm.apply(broken, norms.RMS_EPS),
        GatedNorm.apply(broken, other, weight, norms.GATED_NORM_EPS),
        GatedNorm.apply(other, broken, weight, norms.GATED_NORM_EPS),
        AddNorm.apply(other, broken, norms.RMS_EPS)[1],
        MixNorm.apply(other, broken, mix, None, None, norms.RMS_EPS)[1],
    ):
        assert outputs.isnan().any(1).tolist() == [False, True, False]
    x = broken.requires_grad_()
    Relu2Norm.apply(x, norms.RMS_EPS).backward(other)
    assert x.grad is not None
    assert x.grad.isnan().any(1).tolist() == [False, True, False]


def test_rows_that_lie_apart_are_read_where_they_are() -> None:
    y, weight = random(4, 3, 40, seed=0), random(40, seed=2)
    wide = random(4, 3, 100, seed=1)

    def kernels(y: Tensor, wide: Tensor, weight: Tensor) -> Tensor:
        return GatedNorm.apply(y, wide[..., 20:60], weight, norms.GATED_NORM_EPS)

    def turned(y: Tensor, wide: Tensor, weight: Tensor) -> Tensor:
        """Rows without a common stride."""
        return GatedNorm.apply(y, wide[..., 20:60].transpose(0, 1).contiguous().transpose(0, 1), weight, 1e-5)

    for ours in (kernels, turned):
        compare(ours, lambda y, wide, weight: norms.gated_norm(y, wide[..., 20:60], weight), [y, wide, weight], 1e-5)


def test_nothing_is_no_trouble() -> None:
    none, weight = torch.zeros(0, 40, device=DEVICE), torch.ones(40, device=DEVICE, requires_grad=True)
    mix = torch.ones(2, 40, device=DEVICE, requires_grad=True)
    GatedNorm.apply(none, none, weight, norms.GATED_NORM_EPS).sum().backward()
    MixNorm.apply(none, none, mix, none, weight, norms.RMS_EPS)[1].sum().backward()
    assert weight.grad is not None
    assert mix.grad is not None
    assert not weight.grad.any()
    assert not mix.grad.any()
