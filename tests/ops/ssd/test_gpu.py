"""The sequence operator in Triton on a GPU: against the float64 recurrence and the PyTorch path; torch.compile."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from jepamba.ops.ssd import ssd_torch
from jepamba.ops.ssd.triton import ssd_triton
from needs_gpus import needs_gpus
from ops.compare import beyond, relative
from ops.ssd.cases import Case, errors, inputs, run

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making (deprecations, precision advice) are not this package's.
    pytest.mark.filterwarnings("default"),
]

CASES = [
    Case(2, 256, 10, 64, 1, 64, 64),
    Case(2, 300, 4, 64, 2, 64, 64, resets=0.03, initial=True),
    Case(1, 1, 4, 64, 1, 64, 64, initial=True),
    Case(3, 77, 4, 32, 1, 16, 32, resets=0.1, initial=True, keep=False),
    Case(1, 200, 6, 128, 1, 128, 64, resets=0.02, initial=True),
    Case(2, 130, 4, 32, 2, 128, 64, initial=True, keep=False),
    Case(2, 200, 2, 128, 1, 16, 128, resets=0.02, initial=True),
    Case(2, 100, 3, 64, 3, 64, 16, resets=0.3, initial=True),
    Case(64, 600, 4, 128, 1, 128, 128, initial=True),
    Case(70, 130, 4, 64, 2, 64, 64, resets=0.03, initial=True),
    Case(2, 300, 10, 64, 1, 128, 64, resets=0.02, initial=True),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_bf16_equals_recurrence(case: Case) -> None:
    assert beyond(errors(case, torch.bfloat16, "cuda"), 1e-2) == {}


@pytest.mark.parametrize("case", [CASES[i] for i in (1, 3, 4, 7)], ids=str)
def test_fp32_equals_recurrence(case: Case) -> None:
    assert beyond(errors(case, torch.float32, "cuda"), 1e-5) == {}


def test_twice_the_same_bits() -> None:
    args, reset, weights = inputs(CASES[-1], torch.bfloat16, "cuda")
    for first, second in zip(run(ssd_triton, args, reset, weights), run(ssd_triton, args, reset, weights), strict=True):
        assert torch.equal(first, second)


def test_compiled_without_a_break_equals_eager() -> None:
    args, reset, weights = inputs(CASES[1], torch.bfloat16, "cuda")

    def block(*values: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        y, final = ssd_triton(*values)
        return y * 2, final

    eager = run(block, args, reset, weights)
    compiled = run(torch.compile(block, fullgraph=True), args, reset, weights)
    for ours, truth in zip(compiled, eager, strict=True):
        assert relative(ours, truth) < 1e-2


def test_checkpointed_equals_plain() -> None:
    args, reset, weights = inputs(CASES[1], torch.bfloat16, "cuda")

    def block(*values: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        return checkpoint(ssd_triton, *values, use_reentrant=False)

    for ours, truth in zip(run(block, args, reset, weights), run(ssd_triton, args, reset, weights), strict=True):
        assert torch.equal(ours, truth)


def test_long_sequence_as_the_pytorch_path() -> None:
    args, reset, weights = inputs(Case(4, 1500, 10, 64, 1, 64, 64, resets=0.002, initial=True), torch.bfloat16, "cuda")
    wide = [value.detach().float().requires_grad_() for value in args]
    for ours, truth in zip(run(ssd_triton, args, reset, weights), run(ssd_torch, wide, reset, weights), strict=True):
        assert relative(ours, truth) < 1e-2
