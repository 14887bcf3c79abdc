"""VICReg's terms against their definition in float64, value and gradient."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepamba.jepa import vicreg


def definition(z_NE: Tensor) -> Tensor:
    """Equations 1 to 4 of arXiv 2105.04906 for one batch, with the weights 1 and 1/25."""
    count, size = z_NE.shape
    deviations = [torch.sqrt(z_NE[:, j].var() + 1e-4) for j in range(size)]
    spread = sum((torch.relu(1 - deviation) for deviation in deviations), z_NE.new_zeros(())) / size
    means = [sum(z_NE[n, j] for n in range(count)) / count for j in range(size)]
    correlation = z_NE.new_zeros(())
    for i in range(size):
        for j in range(size):
            if i != j:
                entry = ((z_NE[:, i] - means[i]) * (z_NE[:, j] - means[j])).sum() / (count - 1)
                correlation = correlation + entry**2 / size
    return spread + correlation / 25


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0])
def test_value_and_gradient_by_definition(scale: float) -> None:
    mixed = torch.randn(3, 11, 6, dtype=torch.float64) @ torch.randn(6, 6, dtype=torch.float64)
    z = (scale * mixed + 2).requires_grad_()
    found, truth = vicreg(z), definition(z.flatten(0, 1))
    assert found.dtype == torch.float64
    assert found.item() == pytest.approx(truth.item(), rel=1e-10)
    (ours,), (theirs,) = torch.autograd.grad(found, z), torch.autograd.grad(truth, z)
    assert theirs.abs().max() > 1e-3
    assert torch.allclose(ours, theirs, rtol=1e-8, atol=1e-12)


def test_it_is_0_for_uncorrelated_latents_of_unit_spread_and_fp32_for_bf16() -> None:
    corners = torch.tensor([[[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]])
    assert vicreg(corners).item() == 0
    assert vicreg(0.5 * corners).item() == pytest.approx(1 - (1 / 3 + 1e-4) ** 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        found = vicreg(torch.randn(4, 9, 8).bfloat16())
    assert found.dtype == torch.float32


def test_constant_latents_have_a_finite_gradient() -> None:
    z = torch.full((2, 5, 3), 1.5, requires_grad=True)
    value = vicreg(z)
    value.backward()
    assert value.item() == pytest.approx(0.99, abs=1e-6)
    assert z.grad is not None
    assert torch.isfinite(z.grad).all()
