"""Tests of the product with a cached matrix against PyTorch in float64: output and all gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from jepamba.ops.linear.products import Projected, projected
from jepamba.ops.linear.pytorch import linear_torch
from jepamba.ops.linear.triton import cached_linear
from ops.compare import DEVICE, DTYPES, random, relative


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("rows", [0, 24, 48])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("shape", [(2, 5, 24, 24), (3, 100, 40, 24)], ids=str)
def test_equals_plain(
    shape: tuple[int, int, int, int], scaled: bool, rows: int, dtype: torch.dtype, tolerance: float
) -> None:
    """The fp32 gradient of a leaf accumulates without rounding to the dtype of the leaf."""
    B, T, K, R = shape
    x, w = random(B, T, K, seed=0).to(dtype).requires_grad_(), random(R, K, seed=1).to(dtype).requires_grad_()
    scale = random(R, seed=2).requires_grad_() if scaled else None
    w.grad_dtype = torch.float32
    dy = random(B, T, max(rows, R), seed=3).to(dtype)
    w.grad = torch.ones_like(w, dtype=torch.float32)
    y = cached_linear(x, w, scale, rows)
    y.backward(dy)

    leaves = [x, w, *([scale] if scale is not None else [])]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    truth = linear_torch(wide[0], wide[1], wide[2] if scaled else None, rows)
    truth.backward(dy.double())
    assert w.grad is not None
    assert wide[1].grad is not None
    assert w.grad.dtype == torch.float32
    wide[1].grad += 1
    for ours, theirs in zip([y, *(v.grad for v in leaves)], [truth, *(v.grad for v in wide)], strict=True):
        assert ours is not None
        assert theirs is not None
        assert (ours.double() - theirs).norm() < tolerance * theirs.norm()


def test_gradients_of_bf16_factors_are_summed_in_fp32() -> None:
    """A sum of 65,536 products of bf16 numbers. In bf16 it would have a relative error of a few per mille."""
    x, dy = random(65536, 64, seed=0).bfloat16(), random(65536, 48, seed=1).bfloat16()
    w = random(48, 64, seed=2).bfloat16().requires_grad_()
    w.grad_dtype = torch.float32
    cached_linear(x, w, None, 0).backward(dy)
    truth = dy.double().t() @ x.double()
    assert w.grad is not None
    assert (w.grad - truth).norm() < 1e-5 * truth.norm()


def test_a_strided_scale_and_a_single_token() -> None:
    x, w, scale = random(24, seed=0), random(24, 24, seed=1), random(48, seed=2)[::2]
    assert torch.allclose(cached_linear(x, w, scale, 0), linear_torch(x, w, scale, 0), atol=1e-5)


def test_no_gradient_where_none_is_wanted() -> None:
    x, w = random(2, 70, 24, seed=0), random(24, 24, seed=1).requires_grad_()
    cached_linear(x, w, None, 32).sum().backward()
    assert x.grad is None
    assert w.grad is not None
    assert w.grad.shape == w.shape


@pytest.mark.parametrize("shape", [(2, 5, 24, 40), (70, 3, 640, 672)], ids=str)
def test_projected(shape: tuple[int, int, int, int]) -> None:
    """The product has fp32 precision, and the gradient has only the error of its rounding to bf16.

    The product sums K = 3·E products that are exact in fp32. Rounded to nearest, the errors of the partial sums are
    independent: √K·2⁻²⁴. A tensor core adds 16 products at a time and truncates: half a unit in the last place each
    time on average, always towards 0, so K/16·2⁻²⁴. For K = 72 the bound of 5e-7 still detects directions of two bf16
    values instead of three.
    """
    S, N, E, M = shape
    x = random(N, S, E, seed=0).bfloat16().transpose(0, 1).requires_grad_()
    directions, grad_out = F.normalize(random(E, M, seed=1), dim=0), random(S, N, M, seed=2)
    ours = Projected.apply(x, directions)
    truth = x.detach().double().requires_grad_()
    exact = truth @ directions.double()
    assert ours.dtype == torch.float32
    K = 3 * E
    assert relative(ours, exact) < max(K**0.5, K / 16 if DEVICE == "cuda" else 0.0) * 2.0**-24
    ours.backward(grad_out)
    exact.backward(grad_out.double())
    assert x.grad is not None
    assert truth.grad is not None
    assert x.grad.dtype == torch.bfloat16
    # Rounding alone gives 1.7e-3; a plain product of bf16 factors 2.9e-3.
    assert (x.grad - truth.grad).norm() / truth.grad.norm() < 2.0e-3
    wide = x.detach().float()
    assert torch.equal(projected(wide, directions), wide @ directions)
