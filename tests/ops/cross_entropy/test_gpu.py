"""The cross-entropy on a GPU, in bfloat16 and fp32, against plain PyTorch in float64; captured in a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from jepamba.ops.cross_entropy import capped_cross_entropy
from jepamba.ops.cross_entropy.triton import row_losses_triton
from needs_gpus import needs_gpus
from ops.compare import DTYPES, beyond, check_captured, relative
from ops.cross_entropy.cases import cross_entropy_errors

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize("learn", [True, False])
@pytest.mark.parametrize(
    ("rows", "vocab", "kind", "cap"),
    [
        (700, 8192, "poly", 15.0),
        (700, 8192, "tanh", 15.0),
        (333, 8191, "off", 4.0),
        (4000, 256, "poly", 15.0),
        (50, 3, "poly", 15.0),
        (300, 16384, "poly", 15.0),
        (90, 65536, "poly", 15.0),
        (40, 20001, "off", 6.0),
    ],
)
def test_cross_entropy(
    rows: int, vocab: int, kind: str, cap: float, learn: bool, dtype: torch.dtype, tolerance: float
) -> None:
    assert beyond(cross_entropy_errors(rows, vocab, kind, cap, dtype, "cuda", learn=learn), tolerance) == {}


def head() -> tuple[Callable[[], list[Tensor]], list[Tensor]]:
    """(the whole loss of the head with its gradients, what it reads)."""
    g = torch.Generator("cuda").manual_seed(0)
    features = torch.randn(3000, 336, device="cuda", generator=g).bfloat16().requires_grad_()
    matrix = (torch.randn(8192, 336, device="cuda", generator=g) * 0.05).requires_grad_()
    bias = torch.randn(8192, device="cuda", generator=g).requires_grad_()
    targets = torch.randint(0, 8192, (3000,), device="cuda", generator=g)

    def call() -> list[Tensor]:
        losses = capped_cross_entropy(features, matrix, bias, targets, "poly", 15.0, 1e-4)
        return [*losses, *torch.autograd.grad(losses.total, [features, matrix, bias])]

    return call, [features, matrix, bias]


def test_captured_in_a_graph_and_twice_the_same_bits() -> None:
    check_captured(head()[0])


def test_the_head_s_gradients_are_autograd_s() -> None:
    call, leaves = head()
    ours = call()[3:]
    wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
    raw = leaves[0].detach() @ leaves[1].detach().bfloat16().T
    assert raw.dtype == torch.bfloat16
    logits = wide[0] @ wide[1].T + wide[2]
    u = (logits / 15.0).clamp(-2, 2)
    logits = 15.0 * (u * (1 - u**2 / 3 + u**4 / 15)).clamp(-1, 1)
    g = torch.Generator("cuda").manual_seed(0)
    for size in ((3000, 336), (8192, 336), (8192,)):
        torch.randn(size, device="cuda", generator=g)
    targets = torch.randint(0, 8192, (3000,), device="cuda", generator=g)
    loss = torch.nn.functional.cross_entropy(logits, targets) + 1e-4 * logits.logsumexp(1).square().mean()
    for value, truth in zip(ours, torch.autograd.grad(loss, wide), strict=True):
        assert relative(value, truth) < 1e-2


def test_a_broken_logit_breaks_the_loss() -> None:
    raw = torch.randn(30, 8192, device="cuda").bfloat16()
    raw[7, 7000] = float("nan")
    targets = torch.zeros(30, dtype=torch.int64, device="cuda")
    ours = row_losses_triton(raw, torch.zeros(8192, device="cuda"), targets, "poly", 15.0, scale=1.0)
    assert ours.ce_n.isnan().nonzero().flatten().tolist() == [7]
