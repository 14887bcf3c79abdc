"""A mixer's fused inside by Triton's interpreter (or on a GPU, where there is one) against the plain one in float64:
output, state and every gradient. `tests/test_triton.py` runs this file in a process of its own."""

from typing import Any

import pytest
import torch
from norms_interpreted import DEVICE, DTYPES, compare
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.fused import mixer as fused_mixer
from jepamba.fused.mixer import FusedMixer
from jepamba.model.mixer import Mamba2, MixerState

NAMES = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("carried", [False, True])
@pytest.mark.parametrize("resets", [False, True])
def test_fused_equals_plain(dtype: torch.dtype, tolerance: float, carried: bool, resets: bool) -> None:
    torch.manual_seed(3)
    config = Model(vocab_size=16, dim=64, headdim=32, d_state=16, chunk=16, layers=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    B, T = 2, 37
    projected = torch.randn(B, T, mixer.row_width, device=DEVICE, dtype=dtype)
    projected[..., mixer.sizes.inner + mixer.channels + mixer.sizes.heads :] = 0
    reset = (torch.rand(B, T, device=DEVICE) < 0.1) if resets else None
    state = None
    if carried:
        state = MixerState(*(torch.randn_like(value) for value in mixer.initial_state(B)))
    weights = [getattr(mixer, name).detach() for name in NAMES]

    def fused(rows: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return FusedMixer.apply(rows, *values, *(state or (None, None)), reset, mixer.sizes, torch.is_grad_enabled())

    def plain(rows: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        read = dict(zip(NAMES, values, strict=True))
        mixer.weight = read.__getitem__  # type: ignore[method-assign]
        before = mixer.initial_state(B) if state is None else state
        normed, after = mixer._plain(rows, reset, MixerState(*(value.double() for value in before)))
        return normed, after.ssm_BHPN

    compare(fused, plain, [projected, *weights], tolerance)
    with torch.no_grad():
        ours = fused(projected, *weights)[1]
        truth = plain(projected.double(), *(value.double() for value in weights))[1]
    assert (ours - truth).norm() / truth.norm() < tolerance


def test_what_the_backward_pass_needs_is_kept_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation pass writes no states, and reads a long stream in segments; its parameters want gradients all the
    same."""
    config = Model(vocab_size=16, dim=64, headdim=32, d_state=16, chunk=16, layers=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    kept: list[bool] = []
    honest = fused_mixer.run_forward

    def noted(*given: Any) -> Any:
        kept.append(given[9])
        return honest(*given)

    monkeypatch.setattr(fused_mixer, "run_forward", noted)
    projected = torch.randn(1, 20, mixer.row_width, device=DEVICE)
    with torch.no_grad():
        mixer._fused(projected, None, None)
    mixer._fused(projected, None, None)
    assert kept == [False, True]
