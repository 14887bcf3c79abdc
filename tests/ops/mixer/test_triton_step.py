"""Tests of the step kernel of the mixer against plain PyTorch in float64, over many tokens."""

from typing import Any

import pytest
import torch

from jepamba.config import Model, Quant
from jepamba.model.mixer import Mamba2
from jepamba.ops.mixer.pytorch import mixer_torch
from jepamba.ops.mixer.step import mixer_step
from ops.compare import DEVICE

NAMES = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")


@pytest.mark.parametrize(
    ("settings", "resets"),
    [
        ({"d_model": 64, "headdim": 32, "d_state": 16}, True),
        pytest.param(
            {"d_model": 128, "headdim": 32, "d_state": 32, "ngroups": 2, "d_conv": 2}, False, marks=pytest.mark.slow
        ),
        ({"d_model": 32, "headdim": 32, "d_state": 16, "d_conv": 1}, True),
    ],
)
def test_steps_equal_the_parallel_pass(settings: dict[str, Any], resets: bool) -> None:
    torch.manual_seed(3)
    mixer = Mamba2(Model(vocab_size=16, chunk_size=16, n_layer=1, **settings), Quant()).to(DEVICE)
    B, T = 2, 24
    # Rows of a wider tensor, as with the padding of the projection.
    projected = torch.randn(B, T, mixer.row_width + 8, device=DEVICE)
    reset = (torch.rand(B, T, device=DEVICE) < 0.1) if resets else None
    weights = [getattr(mixer, name).master.detach() for name in NAMES]
    first = [torch.randn_like(value) for value in mixer.initial_state(B)]
    exact, *after = mixer_torch(
        projected.double(),
        *(value.double() for value in weights),
        *(value.double() for value in first),
        reset,
        mixer.sizes,
    )
    state, outputs = first, []
    for t in range(T):
        now = slice(t, t + 1)
        out, *state = mixer_step(
            projected[:, now], *weights, *state, None if reset is None else reset[:, now], mixer.sizes
        )
        outputs.append(out)
    for ours, truth in zip([torch.cat(outputs, dim=1), *state], [exact, *after], strict=True):
        assert ours.shape == truth.shape
        assert (ours - truth).norm() <= 1e-5 * truth.norm()
