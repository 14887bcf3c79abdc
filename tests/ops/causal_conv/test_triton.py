"""Tests of the fp32 kernels of the convolution against the reference in float64. test_gpu.py tests bfloat16."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepamba.ops import causal_conv
from jepamba.ops.causal_conv import triton as conv
from ops.causal_conv.cases import conv_errors
from ops.compare import DEVICE, beyond


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(causal_conv, "use_triton", lambda _: True)


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small tiles, so that few tokens and channels give several chunks and blocks."""
    tuned = {"CHUNK": 16, "BLOCK": 16, "PREFETCH": 4}
    monkeypatch.setattr(conv, "TUNED", {"forward": tuned, "backward": tuned})


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps", "resets", "history"),
    [
        pytest.param(2, 37, 20, 4, 0.0, False, marks=pytest.mark.slow),
        pytest.param(2, 37, 20, 4, 0.15, True, marks=pytest.mark.slow),
        (1, 1, 5, 4, 0.0, True),
        (2, 2, 8, 4, 0.5, True),
        (1, 33, 9, 2, 0.1, True),
        (1, 20, 9, 8, 0.2, True),
        (1, 18, 16, 3, 0.9, False),
    ],
)
def test_convolution(batch: int, length: int, channels: int, taps: int, resets: float, history: bool) -> None:
    worst = conv_errors(batch, length, channels, taps, torch.float32, DEVICE, resets=resets, history=history)
    assert beyond(worst, 1e-5) == {}


@pytest.mark.slow
@pytest.mark.usefixtures("_short_chunks")
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    batch=st.integers(1, 2),
    length=st.integers(1, 36),
    channels=st.integers(1, 20),
    taps=st.integers(2, 8),
    resets=st.sampled_from([0.0, 0.1, 0.9]),
    history=st.booleans(),
    seed=st.integers(0, 9),
)
def test_convolution_of_random_shapes(
    batch: int, length: int, channels: int, taps: int, resets: float, history: bool, seed: int
) -> None:
    worst = conv_errors(batch, length, channels, taps, torch.float32, DEVICE, resets=resets, history=history, seed=seed)
    assert beyond(worst, 1e-5) == {}


@pytest.mark.usefixtures("_short_chunks")
def test_convolution_between_slices_of_wider_rows() -> None:
    rows = torch.randn(2, 21, 30, device=DEVICE)
    kernel, bias = torch.randn(12, 4, device=DEVICE), torch.randn(12, device=DEVICE)
    x, dout = rows[..., 5:17], torch.randn(2, 21, 40, device=DEVICE)[..., 3:15]
    y = conv.conv_silu_forward(x, None, kernel, bias, None)
    assert torch.equal(conv.conv_silu_forward(x.contiguous(), None, kernel, bias, None), y)
    drows, dx = torch.zeros_like(rows), torch.empty(2, 21, 12, device=DEVICE)
    first = conv.conv_silu_backward(dout, x, None, kernel, bias, None, drows[..., 5:17])
    second = conv.conv_silu_backward(dout.contiguous(), x.contiguous(), None, kernel, bias, None, dx)
    assert torch.equal(drows[..., 5:17], dx)
    assert not drows[..., :5].any()
    assert not drows[..., 17:].any()
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] is None
    assert first[0].is_contiguous()  # as the leaf's own gradient, to which it is added
