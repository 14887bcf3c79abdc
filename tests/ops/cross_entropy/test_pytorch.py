"""Tests of the sliced loss against the float64 reference: values and gradients."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from jepamba.ops.cross_entropy import capped_cross_entropy, sliced, softcap
from jepamba.ops.cross_entropy.pytorch import row_losses_torch
from jepamba.ops.cross_entropy.reference import capped_cross_entropy_reference
from ops.compare import relative


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


def autograd_truth(raw: Tensor, bias: Tensor, targets: Tensor, kind: str, cap: float) -> list[Tensor]:
    """The gradients of ce + 0.01·lse², summed and times 0.7, by autograd."""
    leaves = [raw.clone().requires_grad_(), bias.clone().requires_grad_()]
    logits = softcap(leaves[0] + leaves[1], kind, cap)
    loss = F.cross_entropy(logits, targets, reduction="sum") + 1e-2 * logits.logsumexp(1).square().sum()
    return list(torch.autograd.grad(0.7 * loss, leaves))


@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
def test_the_gradient_of_the_rows_is_that_of_autograd(kind: str) -> None:
    raw, bias = torch.randn(9, 40, dtype=torch.float64) * 20, torch.randn(40, dtype=torch.float64)
    targets = torch.randint(0, 40, (9,))
    truth = autograd_truth(raw, bias, targets, kind, 15.0)
    ours = row_losses_torch(raw.clone(), bias, targets, kind, 15.0, z_weight=1e-2, scale=0.7)
    assert ours.grad_nV is not None
    assert ours.grad_bias_V is not None
    assert relative(ours.grad_nV, truth[0]) < 1e-12
    assert relative(ours.grad_bias_V, truth[1]) < 1e-12
