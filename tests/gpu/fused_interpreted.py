"""The fused operators by Triton's interpreter on the CPU, against plain PyTorch in float64 (fp32; test_fused_gpu.py has
bfloat16). `tests/test_fused_triton.py` runs this file."""

from __future__ import annotations

import pytest
import torch
from fused_cases import autograd_truth, cross_entropy_errors, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from jepamba.fused import cross_entropy
from jepamba.fused.cross_entropy import row_losses_torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


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


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_token_nats(temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    logits, targets = torch.randn(20, 70) * 6, torch.randint(0, 70, (20,))
    truth = cross_entropy.token_nats(logits.double(), targets, temperature)
    monkeypatch.setattr(cross_entropy, "on_gpu", lambda _: True)
    before = logits.clone()
    assert relative(cross_entropy.token_nats(logits.to(DEVICE), targets.to(DEVICE), temperature), truth) < 1e-6
    assert torch.equal(logits, before)
