"""Tests of the cross-entropy's C++ kernel against PyTorch in float64: losses and gradients."""

import pytest
import torch

from jepamba.ops.cross_entropy import row_losses
from jepamba.ops.cross_entropy.cpp import is_supported, row_losses_cpp
from jepamba.ops.cross_entropy.pytorch import row_losses_torch
from ops.compare import relative
from ops.cpp_cases import DTYPES, needs_compiler, random

pytestmark = needs_compiler
ROWS, VOCAB = 37, 112


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize("kind", ["poly", "tanh", "off"])
@pytest.mark.parametrize("size", [1.0, 30.0])
def test_equals_float64(kind: str, size: float, dtype: torch.dtype, tolerance: float) -> None:
    raw, bias = (size * random(ROWS, VOCAB, seed=0)).to(dtype), random(VOCAB, seed=1)
    targets = torch.arange(ROWS) * 3
    given = {"z_weight": 1e-2, "scale": 0.3}
    truth = row_losses_torch(raw.double(), bias.double(), targets, kind, 15.0, **given)
    assert is_supported(raw)
    ours = row_losses(raw, bias, targets, kind, 15.0, **given)
    assert ours.grad_nV is raw, "the gradients replace the logits"
    for name, mine, exact in zip(ours._fields, ours, truth, strict=True):
        assert mine is not None
        assert exact is not None
        assert relative(mine, exact) < (tolerance if name == "grad_nV" else 2e-6), name


def test_a_broken_logit_breaks_its_row() -> None:
    raw = random(3, VOCAB, seed=0)
    raw[1, 5] = float("nan")
    losses = row_losses_cpp(raw, torch.zeros(VOCAB), torch.tensor([1, 2, 3]), "off", 15.0, z_weight=0.0, scale=1.0)
    assert losses.ce_n.isnan().tolist() == [False, True, False]
    assert raw.isnan().any(1).tolist() == [False, True, False]


def test_other_vocabularies_and_evaluations_are_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    def used(*given: object, **named: object) -> None:
        raise AssertionError

    monkeypatch.setattr("jepamba.ops.cross_entropy.rows.row_losses_cpp", used)
    bias, targets = torch.zeros(VOCAB), torch.tensor([1, 2, 3])
    row_losses(random(3, VOCAB, seed=0), bias, targets, "off", 15.0)
    row_losses(random(3, 50, seed=0), bias[:50], targets, "off", 15.0, scale=1.0)
    with pytest.raises(AssertionError):
        row_losses(random(3, VOCAB, seed=0), bias, targets, "off", 15.0, scale=1.0)
