"""The fused operators by Triton's interpreter on the CPU, against plain PyTorch in float64 (fp32; test_fused_gpu.py has
bfloat16). `tests/test_triton.py` runs this file."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from fused_cases import autograd_truth, conv_errors, cross_entropy_errors, epps_pulley_errors, relative
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jepamba.ops import causal_conv, epps_pulley
from jepamba.ops.causal_conv import triton as conv
from jepamba.ops.cross_entropy import rows, token_nats
from jepamba.ops.cross_entropy import triton as cross_entropy
from jepamba.ops.cross_entropy.pytorch import row_losses_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (causal_conv, rows, epps_pulley):
        monkeypatch.setattr(module, "use_triton", lambda _: True)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(
    ("rows", "vocab", "kind", "cap"),
    [
        (40, 256, "poly", 15.0),
        (5, 50, "poly", 15.0),
        (9, 777, "tanh", 15.0),
        (1, 1, "off", 15.0),
        (9, 777, "off", 4.0),
        (7, 300, "poly", 60.0),
        (3, 8192, "poly", 15.0),
    ],
)
def test_cross_entropy(rows: int, vocab: int, kind: str, cap: float, learn: bool) -> None:
    worst = cross_entropy_errors(rows, vocab, kind, cap, torch.float32, DEVICE, learn=learn)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
def test_cross_entropy_of_rows_longer_than_a_tile(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK", 512)
    monkeypatch.setattr(cross_entropy, "LONG_BLOCK", 256)
    worst = cross_entropy_errors(11, 1700, kind, 15.0, torch.float32, DEVICE)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


@SLOW
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 30),
    vocab=st.integers(1, 700),
    kind=st.sampled_from(["poly", "tanh", "off"]),
    learn=st.booleans(),
)
def test_cross_entropy_of_random_shapes(rows: int, vocab: int, kind: str, learn: bool) -> None:
    worst = cross_entropy_errors(rows, vocab, kind, 8.0, torch.float32, DEVICE, learn=learn)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
def test_the_plain_cross_entropy_gradient_is_autograd_s(kind: str) -> None:
    raw, bias = torch.randn(9, 40, dtype=torch.float64) * 20, torch.randn(40, dtype=torch.float64)
    targets = torch.randint(0, 40, (9,))
    truth = autograd_truth(raw, bias, targets, kind, 15.0)
    ours = row_losses_torch(raw.clone(), bias, targets, kind, 15.0, z_weight=1e-2, scale=0.7)
    assert ours.grad_nV is not None
    assert ours.grad_bias_V is not None
    assert relative(ours.grad_nV, truth[0]) < 1e-12
    assert relative(ours.grad_bias_V, truth[1]) < 1e-12


def test_a_broken_logit_breaks_the_loss() -> None:
    raw = torch.randn(3, 40, device=DEVICE)
    raw[1, 7] = float("nan")
    targets = torch.tensor([1, 2, 3], device=DEVICE)
    ours = cross_entropy.row_losses_triton(raw, torch.zeros(40, device=DEVICE), targets, "poly", 15.0)
    assert ours.ce_n.isnan().tolist() == [False, True, False]


def test_long_rows_that_begin_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks of −∞, in front and behind, as a vocabulary's unused pieces may have."""
    monkeypatch.setattr(cross_entropy, "BLOCK", 16)
    monkeypatch.setattr(cross_entropy, "LONG_BLOCK", 16)
    logits, targets = torch.randn(3, 64) * 4, torch.tensor([20, 40, 33])
    logits[:, :17] = logits[:, 50:] = float("-inf")
    truth = F.cross_entropy(logits.double(), targets, reduction="none")
    assert (
        relative(
            cross_entropy.row_losses_triton(
                logits.to(DEVICE), torch.zeros(64, device=DEVICE), targets.to(DEVICE), "off", 15.0
            ).ce_n,
            truth,
        )
        < 1e-6
    )


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_token_nats(temperature: float) -> None:
    logits, targets = torch.randn(20, 70) * 6, torch.randint(0, 70, (20,))
    truth = F.cross_entropy(logits.double() / temperature, targets, reduction="none")
    before = logits.clone()
    assert relative(token_nats(logits.to(DEVICE), targets.to(DEVICE), temperature), truth) < 1e-6
    assert torch.equal(logits, before)


@pytest.fixture
def _short_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks and blocks from few tokens and channels."""
    tuned = {"CHUNK": 16, "BLOCK": 16, "AHEAD": 4}
    monkeypatch.setattr(conv, "TUNED", {"forward": tuned, "backward": tuned})


@pytest.mark.usefixtures("_short_chunks")
@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps", "resets", "history"),
    [
        pytest.param(2, 37, 20, 4, 0.0, False, marks=SLOW),
        pytest.param(2, 37, 20, 4, 0.15, True, marks=SLOW),
        (1, 1, 5, 4, 0.0, True),
        (2, 2, 8, 4, 0.5, True),
        (1, 33, 9, 2, 0.1, True),
        (1, 20, 9, 8, 0.2, True),
        (1, 18, 16, 3, 0.9, False),
    ],
)
def test_convolution(batch: int, length: int, channels: int, taps: int, resets: float, history: bool) -> None:
    worst = conv_errors(batch, length, channels, taps, torch.float32, DEVICE, resets=resets, history=history)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


@SLOW
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
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


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


@pytest.mark.parametrize(
    ("samples", "draws", "directions", "knots", "first"),
    [
        (3, 20, 40, 17, 0.2),
        pytest.param(1, 600, 33, 17, 0.0, marks=SLOW),
        (2, 5, 7, 2, 1.0),
        (1, 70, 5, 64, 0.0),
        (1, 1, 9, 3, 0.5),
    ],
)
def test_epps_pulley(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    worst = epps_pulley_errors(samples, draws, directions, knots, first, DEVICE)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}


@SLOW
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    samples=st.integers(1, 3),
    draws=st.integers(4, 60),
    directions=st.integers(8, 70),
    knots=st.integers(3, 20),
    first=st.floats(0, 1),
)
def test_epps_pulley_of_random_shapes(samples: int, draws: int, directions: int, knots: int, first: float) -> None:
    worst = epps_pulley_errors(samples, draws, directions, knots, first, DEVICE)
    assert {k: v for k, v in worst.items() if not v < 1e-5} == {}
