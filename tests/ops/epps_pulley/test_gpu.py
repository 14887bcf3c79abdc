"""The Epps–Pulley statistic on a GPU against the reference in float64; SIGReg captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepamba.config import Jepa
from jepamba.jepa import Projections, sample_projections, sigreg
from needs_gpus import needs_gpus
from ops.compare import beyond, check_captured
from ops.epps_pulley.cases import epps_pulley_errors

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize(
    ("samples", "draws", "directions", "knots", "first"),
    [(64, 64, 672, 17, 0.2), (1, 8192, 128, 17, 0.0), (3, 50, 33, 64, 0.0), (2, 9, 20, 2, 1.0)],
)
def test_epps_pulley(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    assert beyond(epps_pulley_errors(samples, draws, directions, knots, first, "cuda"), 1e-5) == {}


def test_captured_in_a_graph_and_twice_the_same_bits() -> None:
    g = torch.Generator("cuda").manual_seed(0)
    z = torch.randn(8, 256, 64, device="cuda", generator=g).bfloat16().requires_grad_()
    config = Jepa(sigreg_pool="timestep", sigreg_timesteps=32, sigreg_projections=100)
    projections = sample_projections(config, 64, (8, 256), 0, 0)
    assert projections.indices is not None
    projections = Projections(projections.directions_EM.cuda(), projections.indices.cuda())

    def call() -> list[Tensor]:
        value = sigreg(z, config, projections)
        return [value, *torch.autograd.grad(value, [z])]

    check_captured(call)
