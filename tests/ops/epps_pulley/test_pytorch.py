"""Tests of the PyTorch Epps–Pulley statistic against its definition: value and gradient."""

import pytest
import torch

from jepamba.config import Jepa
from jepamba.jepa.sigreg import knots
from jepamba.ops.epps_pulley import epps_pulley
from jepamba.ops.epps_pulley.reference import epps_pulley_reference
from jepamba.presets import load_preset

CPU = torch.device("cpu")
SUBMISSION, LEWM = (load_preset(name).jepa for name in ("submission-bpe", "cpu+sigreg-lewm"))


@pytest.mark.parametrize(
    "config", [SUBMISSION, LEWM, Jepa(sigreg_t_min=1.0, sigreg_knots=2)], ids=["sub", "lewm", "two"]
)
def test_value_and_gradient_equal_the_definition(config: Jepa) -> None:
    x = torch.randn(3, 20, 5, dtype=torch.float64) * torch.tensor([0.1, 1.0, 4.0]).view(3, 1, 1).double() + 0.3
    t, w = (value.double() for value in knots(config, CPU))
    grad_out = torch.randn(3, 5, dtype=torch.float64)
    ours, truth = x.clone().requires_grad_(), x.clone().requires_grad_()
    value, expected = epps_pulley(ours, t, w), epps_pulley_reference(truth, t, w)
    # The knots are evenly spaced up to fp32 rounding, which the rotation from knot to knot adds up.
    assert torch.allclose(value, expected, rtol=1e-5, atol=1e-7)
    (grad,) = torch.autograd.grad((value * grad_out).sum(), ours)
    (true_grad,) = torch.autograd.grad((expected * grad_out).sum(), truth)
    assert (grad - true_grad).norm() < 1e-5 * true_grad.norm()
    assert (grad - true_grad).abs().max() < 1e-5 * true_grad.abs().max()


def test_gradcheck() -> None:
    x = torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True)
    t = torch.linspace(0.2, 4.0, 17, dtype=torch.float64)
    w = torch.rand(17, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda value: epps_pulley(value, t, w), (x,))
