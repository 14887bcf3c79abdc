"""Tests of the fused mixer against PyTorch in float64: output, state and all gradients."""

from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.ops.mixer import fused as fused_mixer
from jepamba.ops.mixer.fused import FusedMixer
from jepamba.ops.mixer.pytorch import mixer_torch
from jepamba.ops.ssd import triton_segments
from ops.compare import DEVICE, DTYPES, compare

NAMES = ("conv_weight", "conv_bias", "dt_bias", "A_log", "D", "norm_weight")


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("carried", "resets"),
    [
        (True, True),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(False, False), (True, False), (False, True)]),
    ],
)
def test_fused_equals_plain(dtype: torch.dtype, tolerance: float, carried: bool, resets: bool) -> None:
    torch.manual_seed(3)
    config = Model(vocab_size=16, d_model=64, headdim=32, d_state=16, chunk_size=16, n_layer=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    B, T = 2, 37
    projected = torch.randn(B, T, mixer.row_width, device=DEVICE, dtype=dtype)
    projected[..., mixer.sizes.inner + mixer.channels + mixer.sizes.heads :] = 0
    reset = (torch.rand(B, T, device=DEVICE) < 0.1) if resets else None
    state = None
    if carried:
        state = MixerState(*(torch.randn_like(value) for value in mixer.initial_state(B)))
    weights = [getattr(mixer, name).master.detach() for name in NAMES]

    def fused(rows: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        return FusedMixer.apply(rows, *values, *(state or (None, None)), reset, mixer.sizes, torch.is_grad_enabled())

    def plain(rows: Tensor, *values: Tensor) -> tuple[Tensor, Tensor]:
        normed, _, final = mixer_torch(rows, *values, *(state or (None, None)), reset, mixer.sizes)
        return normed, final

    compare(fused, plain, [projected, *weights], tolerance)
    with torch.no_grad():
        ours = fused(projected, *weights)[1]
        truth = plain(projected.double(), *(value.double() for value in weights))[1]
    assert (ours - truth).norm() / truth.norm() < tolerance


@pytest.mark.slow
def test_single_tokens_of_several_groups() -> None:
    """Sequences of one token, whose slices have an arbitrary time stride."""
    torch.manual_seed(6)
    config = Model(vocab_size=16, d_model=256, headdim=128, ngroups=2, d_state=32, chunk_size=16, n_layer=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    projected = torch.randn(3, 1, mixer.row_width, device=DEVICE)
    projected[..., mixer.sizes.inner + mixer.channels + mixer.sizes.heads :] = 0
    weights = [getattr(mixer, name).master.detach() for name in NAMES]

    def fused(rows: Tensor, *values: Tensor) -> Tensor:
        return FusedMixer.apply(rows, *values, None, None, None, mixer.sizes, torch.is_grad_enabled())[0]

    def plain(rows: Tensor, *values: Tensor) -> Tensor:
        return mixer_torch(rows, *values, None, None, None, mixer.sizes)[0]

    compare(fused, plain, [projected, *weights], 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("resets", [False, True])
def test_steps_of_every_size(resets: bool) -> None:
    """Each head has a dt from 1e-18 to 30, and its gradient is compared at its own scale.

    The gradients of dt_bias and A_log are sums over tokens: the error of each term is bounded by its own size. A term
    has a few factors dt and exp(dt·A). On a GPU, the kernel's dt has a relative error up to 2e-5 (`decay_tensors` is
    tested with that bound); the interpreter's exp is exact.

    New memory is filled with NaN, so the test also detects reads of unwritten memory and an unwritten padding gradient.
    """
    torch.manual_seed(5)
    config = Model(vocab_size=16, d_model=256, headdim=32, ngroups=2, d_state=16, chunk_size=16, n_layer=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    heads, end = mixer.sizes.heads, mixer.sizes.inner + mixer.channels
    B, T = 1, 21
    projected = torch.randn(B, T, mixer.row_width).to(DEVICE)
    projected[..., end + heads :] = 0
    reset = (torch.rand(B, T) < 0.1).to(DEVICE) if resets else None
    values = [getattr(mixer, name).master.detach() for name in NAMES]
    values[2] = torch.tensor([-40.0, -20.0, -8.0, -3.0, -1.0, 1.0, 5.0, 30.0], device=DEVICE)
    # Where every step forgets all before it, nothing is left of the gradients of its decays.
    values[3] = -values[2].clamp_min(0.2).log()
    grad_out = torch.randn(B, T, mixer.sizes.inner).to(DEVICE)

    def gradients(fused: bool) -> dict[str, Tensor]:
        width = torch.float32 if fused else torch.float64
        leaves = [value.detach().to(width).requires_grad_() for value in (projected, *values)]
        if fused:
            out = FusedMixer.apply(*leaves, None, None, reset, mixer.sizes, True)[0]
        else:
            out = mixer_torch(*leaves, None, None, reset, mixer.sizes)[0]
        grads = torch.autograd.grad(out, leaves, grad_out.to(out.dtype))
        return dict(zip(("projected", *NAMES), grads, strict=True))

    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        ours = gradients(True)
    finally:
        torch.use_deterministic_algorithms(False)
    truth = gradients(False)
    assert mixer.row_width > end + heads
    assert not ours["projected"][..., end + heads :].any()
    ours["raw_dt"], truth["raw_dt"] = (of["projected"][..., end : end + heads] for of in (ours, truth))
    dt = torch.nn.functional.softplus((projected[..., end : end + heads] + values[2]).double())
    # softplus' = 1 − e^(−dt). The gradient of A_log has the part of dt·ddt that comes from decays.
    terms = {"dt_bias": truth["raw_dt"], "A_log": truth["raw_dt"] * dt / -torch.expm1(-dt)}
    tolerance = 5 * 2e-5 if DEVICE == "cuda" else 1e-5
    for name in ("raw_dt", "dt_bias", "A_log", "D"):
        assert ours[name].dtype == torch.float32
        for h in range(heads):
            a, b = ours[name][..., h].double(), truth[name][..., h]
            size = max(b.norm(), terms[name][..., h].abs().sum()) if name in terms else b.norm()
            assert (a - b).norm() <= tolerance * size + 1e-30, f"{name} of head {h}: {a.norm():.3e}, {b.norm():.3e}"
    for name in NAMES:
        assert ours[name].is_contiguous()


def test_a_long_stream_is_read_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_segments, "MIN_CHUNKS", 2)
    config = Model(vocab_size=16, d_model=64, headdim=32, d_state=16, chunk_size=16, n_layer=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    T = 128
    assert triton_segments.num_segments(mixer.sizes.heads, T, 16) > 1
    projected = torch.randn(1, T, mixer.row_width, device=DEVICE)
    reset = torch.rand(1, T, device=DEVICE) < 0.03
    state = MixerState(*(torch.randn_like(value) for value in mixer.initial_state(1)))
    with torch.no_grad():
        ours = mixer._forward_fused(projected, reset, state)
        weights = [getattr(mixer, name).effective_weight().double() for name in NAMES]
        normed, _, final = mixer_torch(projected.double(), *weights, *state, reset, mixer.sizes)
    for a, b in zip((ours[0], ours[1].ssm_BHPN), (normed, final), strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_what_the_backward_pass_needs_is_kept_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation pass stores no states and uses segments for a long stream, although parameters need gradients."""
    config = Model(vocab_size=16, d_model=64, headdim=32, d_state=16, chunk_size=16, n_layer=1)
    mixer = Mamba2(config, Quant()).to(DEVICE)
    kept: list[bool] = []
    original = fused_mixer.run_forward

    def noted(*given: Any) -> Any:
        kept.append(given[9])
        return original(*given)

    monkeypatch.setattr(fused_mixer, "run_forward", noted)
    projected = torch.randn(1, 20, mixer.row_width, device=DEVICE)
    with torch.no_grad():
        mixer._forward_fused(projected, None, None)
    mixer._forward_fused(projected, None, None)
    assert kept == [False, True]
