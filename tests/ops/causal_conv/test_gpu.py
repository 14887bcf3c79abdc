"""The convolution on a GPU, in bfloat16 and fp32, against the reference in float64; captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from jepamba.ops.causal_conv import conv_silu
from needs_gpus import needs_gpus
from ops.causal_conv.cases import conv_errors
from ops.compare import DTYPES, beyond, check_captured

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "channels", "taps", "resets", "history"),
    [
        (4, 1000, 768, 4, 0.01, True),
        (4, 1024, 768, 4, 0.0, False),
        (3, 77, 50, 4, 0.1, True),
        (2, 1, 768, 4, 0.0, True),
        (2, 300, 129, 8, 0.1, True),
        (2, 300, 64, 2, 0.5, False),
    ],
)
def test_convolution(
    batch: int,
    length: int,
    channels: int,
    taps: int,
    resets: float,
    history: bool,
    dtype: torch.dtype,
    tolerance: float,
) -> None:
    worst = conv_errors(batch, length, channels, taps, dtype, "cuda", resets=resets, history=history)
    assert beyond(worst, tolerance) == {}


def test_captured_in_a_graph_and_twice_the_same_bits() -> None:
    g = torch.Generator("cuda").manual_seed(0)
    x = torch.randn(4, 512, 768, device="cuda", generator=g).bfloat16().requires_grad_()
    kernel = torch.randn(768, 4, device="cuda", generator=g).requires_grad_()
    bias = torch.randn(768, device="cuda", generator=g).requires_grad_()
    grad_out = torch.randn(4, 512, 768, device="cuda", generator=g).bfloat16()
    reset = torch.rand(4, 512, device="cuda", generator=g) < 0.01

    def call() -> list[Tensor]:
        y, after = conv_silu(x, None, kernel, bias, reset)
        return [y, after, *torch.autograd.grad(y, [x, kernel, bias], grad_out)]

    check_captured(call)
