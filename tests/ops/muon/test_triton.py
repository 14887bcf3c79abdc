"""Tests of the kernels of a Muon step against float64, and of whole steps against the plain path."""

import pytest
import torch
from torch import Tensor, nn

from jepamba.ops import muon
from jepamba.ops.dispatch import use_kernels
from jepamba.ops.muon.triton import BLOCK, apply_updates_triton, nesterov_updates_triton
from jepamba.optim import Muon
from ops.compare import DEVICE, beyond, random, relative
from ops.muon.cases import SHAPES, Trained, exact_parameter, exact_updates, matrices

DTYPES = [(torch.float32, 1e-6), (torch.bfloat16, 2.0**-7)]
"""Dtypes of the updates, each with its bound of a relative error. Triton's interpreter truncates to bfloat16."""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators use the kernels, on a CPU too."""
    monkeypatch.setattr(muon, "use_triton", lambda tensor: True)


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("row_norm", [pytest.param(False, marks=pytest.mark.slow), True])
@pytest.mark.parametrize(
    "shape",
    [*SHAPES[1::4], *(pytest.param(shape, marks=pytest.mark.slow) for shape in SHAPES if shape not in SHAPES[1::4])],
    ids=str,
)
def test_nesterov_updates(shape: tuple[int, int], row_norm: bool, dtype: torch.dtype, tolerance: float) -> None:
    for momentum in (0.95, 0.0, torch.tensor(0.95, device=DEVICE), torch.tensor(0.0, device=DEVICE)):
        grads, buffers = matrices(shape, 0), matrices(shape, 3)
        means, updates = exact_updates(grads, buffers, float(momentum), row_norm)
        ours = nesterov_updates_triton(grads, buffers, momentum, row_norm, dtype)
        assert ours.dtype == dtype
        assert beyond({f"buffer {i}": relative(buffers[i], means[i]) for i in range(3)}, 1e-6) == {}
        assert beyond({f"update {i}": relative(ours[i], updates[i]) for i in range(3)}, tolerance) == {}
        assert (ours[2][-1] == 0).all()
        assert all(torch.equal(grad, old) for grad, old in zip(grads, matrices(shape, 0), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (BLOCK // 32 + 1, 33)], ids=str)
def test_apply_updates(shape: tuple[int, int], dtype: torch.dtype) -> None:
    for lr in (0.3, torch.tensor(0.3, device=DEVICE)):
        params, directions = matrices(shape, 0), [value.to(dtype) for value in matrices(shape, 3)]
        truth = [exact_parameter(p, d, 0.3, 0.1) for p, d in zip(params, directions, strict=True)]
        apply_updates_triton(params, directions, lr, 0.1)
        assert beyond({f"parameter {i}": relative(params[i], truth[i]) for i in range(3)}, 1e-6) == {}


def test_gradients_and_directions_may_have_any_layout() -> None:
    grads, buffers, params = (matrices((6, 40), seed) for seed in (0, 3, 6))
    means, updates = exact_updates(grads, buffers, 0.9, True)
    truth = [exact_parameter(p, d, 0.3, 0.1) for p, d in zip(params, updates, strict=True)]
    turned = [grad.t().contiguous().t() for grad in grads]
    ours = nesterov_updates_triton(turned, buffers, 0.9, True, torch.float32)
    apply_updates_triton(params, list(ours.mT.contiguous().mT), 0.3, 0.1)
    for i in range(3):
        assert relative(buffers[i], means[i]) < 1e-6
        assert relative(params[i], truth[i]) < 1e-6


def test_a_broken_value_breaks_its_row() -> None:
    """NaN propagates as in PyTorch, also through the lower bound of the RMS."""
    (grad, *_), (buffer, *_) = matrices((3, 40), 0), matrices((3, 40), 3)
    grad[1, 7] = float("nan")
    ours = nesterov_updates_triton([grad], [buffer], 0.95, True, torch.float32)
    assert ours[0].isnan().all(1).tolist() == [False, True, False]
    assert ours[0].isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("row_norm", "as_tensors"),
    [pytest.param(*c, marks=pytest.mark.slow) for c in [(True, True), (False, False), (False, True), (True, False)]],
)
@pytest.mark.usefixtures("kernels")
def test_steps_are_exact(row_norm: bool, as_tensors: bool) -> None:
    shapes = [(8, 24), (24, 8), (16, 16), (8, 24), (1, 5), (24, 8), (8, 24)]
    trained = Trained(shapes, as_tensors=as_tensors, row_norm=row_norm, dtype=torch.float32)
    for step in range(4):
        trained.prepare(step)
        trained.muon.step()
    assert max(trained.errors()) < 2e-5
    for p in trained.params:
        assert {name: (value.dtype, value.shape) for name, value in trained.muon.state[p].items()} == {
            "momentum": (torch.float32, p.shape)
        }


def test_steps_equal_the_plain_path(kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also with a missing gradient, and with a transposed parameter, which the kernels do not support."""

    def run() -> list[Tensor]:
        params = [nn.Parameter(random(8, 24, seed=0)), nn.Parameter(random(24, 8, seed=1).t())]
        params += [nn.Parameter(random(30, 7, seed=2)), nn.Parameter(random(8, 24, seed=3))]
        optimizer = Muon(params, lr=0.02, momentum=0.9, steps=3, row_norm=True, weight_decay=0.04)
        for step in range(4):
            for i, p in enumerate(params[:-1]):
                p.grad = random(*p.shape, seed=10 * step + i)
            optimizer.step()
        assert params[-1] not in optimizer.state
        return [p.detach() for p in params]

    fused = run()
    monkeypatch.undo()
    with use_kernels(False):
        plain = run()
    for ours, truth in zip(fused, plain, strict=True):
        assert relative(ours, truth) < 1e-6
    assert torch.equal(fused[-1], plain[-1])
