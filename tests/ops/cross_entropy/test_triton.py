"""Tests of the fp32 kernels of the cross-entropy against PyTorch in float64. test_gpu.py tests bfloat16."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from jepamba.ops.cross_entropy import rows, token_nats
from jepamba.ops.cross_entropy import triton as cross_entropy
from ops.compare import DEVICE, beyond, relative
from ops.cross_entropy.cases import cross_entropy_errors


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "use_triton", lambda _: True)


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
    assert beyond(worst, 1e-5) == {}


@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
def test_cross_entropy_of_rows_longer_than_a_tile(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "BLOCK", 512)
    monkeypatch.setattr(cross_entropy, "LONG_BLOCK", 256)
    worst = cross_entropy_errors(11, 1700, kind, 15.0, torch.float32, DEVICE)
    assert beyond(worst, 1e-5) == {}


@pytest.mark.slow
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 30),
    vocab=st.integers(1, 700),
    kind=st.sampled_from(["poly", "tanh", "off"]),
    learn=st.booleans(),
)
def test_cross_entropy_of_random_shapes(rows: int, vocab: int, kind: str, learn: bool) -> None:
    worst = cross_entropy_errors(rows, vocab, kind, 8.0, torch.float32, DEVICE, learn=learn)
    assert beyond(worst, 1e-5) == {}


def test_a_broken_logit_breaks_the_loss() -> None:
    raw = torch.randn(3, 40, device=DEVICE)
    raw[1, 7] = float("nan")
    targets = torch.tensor([1, 2, 3], device=DEVICE)
    ours = cross_entropy.row_losses_triton(raw, torch.zeros(40, device=DEVICE), targets, "poly", 15.0)
    assert ours.ce_n.isnan().tolist() == [False, True, False]


def test_long_rows_that_begin_with_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole blocks of −∞ at the start and end, as for unused pieces of a vocabulary."""
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
