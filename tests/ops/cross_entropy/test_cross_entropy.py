"""Tests of the sliced loss against the float64 reference: values and gradients."""

import pytest
import torch

from jepamba.ops.cross_entropy import capped_cross_entropy, sliced, softcap
from jepamba.ops.cross_entropy.reference import capped_cross_entropy_reference


def test_poly_cap_by_its_definition() -> None:
    u = torch.tensor([0.0, 0.5, -1.0, 1.5, 1.9, 5.0, -40.0], dtype=torch.float64)
    clamped = u.clamp(-2, 2)
    expected = 15 * (clamped * (1 - clamped**2 / 3 + clamped**4 / 15)).clamp(-1, 1)
    assert torch.allclose(softcap(u * 15, "poly", 15.0), expected)
    assert softcap(torch.tensor([1e9, -1e9]), "poly", 15.0).tolist() == [15.0, -15.0]
    assert torch.equal(softcap(u, "off", 15.0), u)
    assert torch.allclose(softcap(u, "tanh", 15.0), 15 * torch.tanh(u / 15))


@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
@pytest.mark.parametrize("slice_values", [7, 200, 1 << 20])
def test_sliced_loss_and_gradients_equal_the_plain_ones(
    kind: str, slice_values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sliced.SLICE_VALUES, "cpu", slice_values)
    g = torch.Generator().manual_seed(0)
    features = (torch.randn(41, 12, generator=g) * 4).requires_grad_()
    matrix = (torch.randn(50, 12, generator=g) * 2).requires_grad_()
    bias = torch.randn(50, generator=g).requires_grad_()
    targets = torch.randint(0, 50, (41,), generator=g)
    ours = capped_cross_entropy(features, matrix, bias, targets, kind, 15.0, 1e-2)
    wide = [value.detach().double().requires_grad_() for value in (features, matrix, bias)]
    total, ce, z = capped_cross_entropy_reference(*wide, targets, kind, 15.0, 1e-2)
    assert ours.ce.item() == pytest.approx(ce.item(), rel=1e-6)
    assert ours.z.item() == pytest.approx(z.item(), rel=1e-6)
    (3.0 * ours.total).backward()
    (3.0 * total).backward()
    for value, truth in zip((features, matrix, bias), wide, strict=True):
        assert value.grad is not None
        assert truth.grad is not None
        error = (value.grad.double() - truth.grad).norm() / truth.grad.norm()
        assert error.item() < 2e-6


def test_no_gradient_is_computed_for_an_evaluation() -> None:
    with torch.no_grad():
        losses = capped_cross_entropy(
            torch.ones(3, 2), torch.ones(5, 2), torch.zeros(5), torch.tensor([0, 1, 2]), "poly", 15.0, 0.0
        )
    assert losses.ce.item() == pytest.approx(torch.log(torch.tensor(5.0)).item(), rel=1e-6)
    assert not losses.total.requires_grad
