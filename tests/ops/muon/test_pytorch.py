"""Tests of a Muon step in PyTorch against its formulas in float64."""

import pytest
import torch

from jepamba.ops.muon.pytorch import (
    apply_updates_torch,
    nesterov_updates_torch,
    orthogonalize_torch,
)
from ops.compare import beyond, random, relative
from ops.muon.cases import SHAPES, exact_direction, exact_parameter, exact_updates, matrices


@pytest.mark.parametrize("row_norm", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_fp32_equals_the_formulas(shape: tuple[int, int], row_norm: bool) -> None:
    grads, buffers = matrices(shape, 0), matrices(shape, 3)
    means, updates = exact_updates(grads, buffers, 0.95, row_norm)
    ours = nesterov_updates_torch(grads, buffers, 0.95, row_norm, torch.float32)
    errors = {f"buffer {i}": relative(buffers[i], means[i]) for i in range(3)}
    errors |= {f"update {i}": relative(ours[i], updates[i]) for i in range(3)}
    params = matrices(shape, 6)
    truth = [exact_parameter(p, d, 0.3, 0.1) for p, d in zip(params, updates, strict=True)]
    apply_updates_torch(params, list(ours), 0.3, 0.1)
    errors |= {f"parameter {i}": relative(params[i], truth[i]) for i in range(3)}
    assert beyond(errors, 1e-6) == {}


class TestOrthogonalize:
    def test_is_the_quintic_on_singular_values(self) -> None:
        for shape in SHAPES:
            update_SRC = torch.stack(matrices(shape, 0))
            out = orthogonalize_torch(update_SRC, 3)
            for i in range(3):
                assert relative(out[i], exact_direction(update_SRC[i], 3)) < 1e-5
            assert orthogonalize_torch(update_SRC.bfloat16(), 1).dtype == torch.bfloat16

    def test_pushes_singular_values_towards_one(self) -> None:
        for shape in ((12, 40), (40, 12), (20, 20)):
            g = random(2, *shape, seed=0)
            out = orthogonalize_torch(g, 5)
            assert out.shape == g.shape
            values = torch.linalg.svdvals(out)
            assert values.max() < 1.25
            assert values[:, :8].min() > 0.6
            assert torch.allclose(orthogonalize_torch(1000 * g, 5), out, atol=1e-4)
            # The singular vectors stay: out · gᵀ is symmetric and positive semi-definite.
            product = out @ g.mT
            assert torch.allclose(product, product.mT, atol=1e-3)

    def test_zero_stays_zero(self) -> None:
        assert (orthogonalize_torch(torch.zeros(1, 3, 4), 3) == 0).all()
