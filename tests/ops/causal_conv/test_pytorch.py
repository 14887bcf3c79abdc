"""Tests of the PyTorch convolution against its definition: output, history and all gradients."""

import pytest
import torch

from jepamba.ops.causal_conv import conv_silu
from jepamba.ops.causal_conv.pytorch import causal_conv
from jepamba.ops.causal_conv.reference import conv_silu_reference


@pytest.mark.parametrize("taps", [1, 2, 4])
@pytest.mark.parametrize("length", [1, 2, 9])
@pytest.mark.parametrize("resets", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("history", [False, True])
def test_plain_pytorch_equals_the_definition(taps: int, length: int, resets: float, history: bool) -> None:
    g = torch.Generator().manual_seed(0)
    kind = {"generator": g, "dtype": torch.float64}
    leaves = [torch.randn(2, length, 5, **kind), torch.randn(5, taps, **kind), torch.randn(5, **kind)]
    if history:
        leaves.append(torch.randn(2, 5, taps - 1, **kind))
    leaves = [leaf.requires_grad_() for leaf in leaves]
    x, kernel, bias, *before = leaves
    reset = torch.rand(2, length, generator=g) < resets if resets else None
    weights = [torch.randn(2, length, 5, **kind), torch.randn(2, 5, taps - 1, **kind)]
    found = []
    for operator in (conv_silu, conv_silu_reference):
        y, after = operator(x, before[0] if before else None, kernel, bias, reset)
        total = (y * weights[0]).sum() + (after * weights[1]).sum()
        found.append([y, after, *torch.autograd.grad(total, leaves, allow_unused=True)])
    for ours, truth in zip(*found, strict=True):
        ours, truth = (torch.zeros(()) if value is None else value for value in (ours, truth))
        assert torch.allclose(ours, truth.to(ours.dtype), rtol=1e-12, atol=1e-12)


def test_convolution_by_hand() -> None:
    x = torch.tensor([[[1.0], [10.0], [100.0], [1000.0]]])
    kernel, bias = torch.tensor([[0.5, 2.0, 3.0]]), torch.tensor([7.0])
    history = torch.tensor([[[4.0, 5.0]]])
    y, after = causal_conv(x, history, kernel, bias, None)
    assert y.flatten().tolist() == [
        7 + 0.5 * 4 + 2 * 5 + 3 * 1,
        7 + 0.5 * 5 + 2 * 1 + 3 * 10,
        7 + 0.5 * 1 + 2 * 10 + 3 * 100,
        7 + 0.5 * 10 + 2 * 100 + 3 * 1000,
    ]
    assert after.flatten().tolist() == [100, 1000]
    reset = torch.tensor([[False, False, True, False]])
    y, after = causal_conv(x, history, kernel, bias, reset)
    assert y.flatten().tolist() == [22, 7 + 2.5 + 2 + 30, 7 + 300, 7 + 200 + 3000]
    assert after.flatten().tolist() == [100, 1000]
    _, after = causal_conv(x, history, kernel, bias, torch.tensor([[False, False, False, True]]))
    assert after.flatten().tolist() == [0, 1000]
    y, after = causal_conv(x[:, :1], history, kernel, bias, torch.tensor([[True]]))
    assert y.flatten().tolist() == [10]
    assert after.flatten().tolist() == [0, 1]


def test_a_reset_hides_the_past_exactly() -> None:
    x, kernel, bias = torch.randn(1, 12, 5), torch.randn(5, 4), torch.randn(5)
    reset = torch.zeros(1, 12, dtype=torch.bool)
    reset[0, 5] = reset[0, 10] = True
    changed = x.clone()
    changed[:, :5] += 100
    changed[:, 8:10] -= 100
    y, after = causal_conv(x, torch.randn(1, 5, 3), kernel, bias, reset)
    y_changed, after_changed = causal_conv(changed, torch.full((1, 5, 3), 1e6), kernel, bias, reset)
    for kept in (slice(5, 8), slice(10, 12)):
        assert torch.equal(y[:, kept], y_changed[:, kept])
    assert torch.equal(after, after_changed)
    assert (after[:, :, 0] == 0).all()  # the token before the last reset is gone
    assert not torch.equal(y[:, 8:10], y_changed[:, 8:10])
