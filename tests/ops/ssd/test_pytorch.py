"""Tests of every SSD implementation against the float64 recurrence: outputs and all gradients."""

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jepamba.ops.ssd import ssd_reference, ssd_torch
from ops.compare import beyond, relative
from ops.ssd.terms import absolute_terms

SHAPES = [
    # B, T, H, P, G, N, chunk
    (2, 1, 2, 4, 1, 8, 16),
    (1, 7, 3, 5, 1, 4, 16),
    (2, 64, 4, 8, 2, 16, 16),
    (3, 77, 4, 8, 4, 16, 32),
    (2, 130, 2, 16, 1, 8, 64),
]


def errors(
    args: list[torch.Tensor], reset: torch.Tensor | None, g: torch.Generator, chunk_size: int
) -> dict[str, float]:
    """Return the relative errors of outputs and gradients for random gradients of the outputs.

    The rounding of the terms is not counted, because a gradient, such as that of A, may be what is left of many terms.
    """
    ours, truth = ssd_torch(*args, reset, chunk_size=chunk_size), ssd_reference(*args, reset)
    weights = [torch.randn(value.shape, generator=g) for value in ours]
    terms = absolute_terms(args, reset, weights, chunk_size)
    ours, truth = (
        [*outputs, *torch.autograd.grad((outputs[0] * weights[0]).sum() + (outputs[1] * weights[1]).sum(), args)]
        for outputs in (ours, truth)
    )
    return {n: relative(*values) for n, *values in zip(terms._fields, ours, truth, terms, strict=True)}


def inputs(shape: tuple[int, ...], seed: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    B, T, H, P, G, N, _ = shape
    g = torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=g, dtype=torch.float64)

    values = [
        normal(B, T, H, P),
        torch.nn.functional.softplus(normal(B, T, H) - 2),
        -torch.exp(normal(H)),
        normal(B, T, G, N),
        normal(B, T, G, N),
        normal(H),
        normal(B, H, P, N),
    ]
    return [value.to(dtype).requires_grad_() for value in values]


@pytest.mark.parametrize("resets", ["none", "some", "first"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_chunked_equals_recurrence_in_outputs_and_gradients(shape: tuple[int, ...], resets: str) -> None:
    args = inputs(shape, seed=1)
    B, T = shape[:2]
    g = torch.Generator().manual_seed(2)
    reset = None if resets == "none" else torch.rand(B, T, generator=g) < 0.08
    if resets == "first" and reset is not None:
        reset[:, 0] = True
    worst = errors(args, reset, g, shape[-1])
    assert beyond(worst, 2e-5) == {}
    assert beyond({name: worst[name] for name in ("y", "state")}, 1e-5) == {}


@settings(max_examples=25, deadline=None)
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 90),
    heads=st.integers(1, 3),
    groups=st.integers(1, 2),
    width=st.integers(1, 6),
    state=st.integers(1, 9),
    chunk_size=st.integers(1, 40),
    density=st.sampled_from([0.0, 0.05, 0.5]),
    seed=st.integers(0, 2**31),
)
# Gradients of A that cancel: 0.005 as the sum of terms of 177 in all; the third is 0.
@example(batch=3, length=8, heads=1, groups=1, width=3, state=8, chunk_size=2, density=0.05, seed=1)
@example(batch=1, length=13, heads=1, groups=1, width=2, state=4, chunk_size=27, density=0.5, seed=1537420073)
@example(batch=1, length=3, heads=3, groups=2, width=1, state=4, chunk_size=2, density=0.5, seed=105641600)
def test_random_shapes_and_resets(
    batch: int,
    length: int,
    heads: int,
    groups: int,
    width: int,
    state: int,
    chunk_size: int,
    density: float,
    seed: int,
) -> None:
    args = inputs((batch, length, heads * groups, width, groups, state, chunk_size), seed)
    g = torch.Generator().manual_seed(seed)
    reset = torch.rand(batch, length, generator=g) < density
    worst = errors(args, reset, g, chunk_size)
    assert beyond(worst, 3e-5) == {}
    assert beyond({name: worst[name] for name in ("y", "state")}, 1e-5) == {}


def test_gradcheck_with_reset_and_state() -> None:
    shape = (1, 6, 2, 2, 1, 3, 4)
    args = inputs(shape, seed=3, dtype=torch.float64)
    reset = torch.tensor([[False, False, True, False, False, False]])
    assert torch.autograd.gradcheck(lambda *a: ssd_torch(*a, reset, chunk_size=4), args)


def test_bf16_inputs_keep_wide_states() -> None:
    shape = (2, 77, 4, 8, 2, 16, 32)
    args = inputs(shape, seed=4, dtype=torch.bfloat16)
    y, state = ssd_torch(*args, chunk_size=32)
    y_true, state_true = ssd_reference(*args)
    assert y.dtype == torch.bfloat16
    assert state.dtype == torch.float32
    assert relative(y, y_true) < 1e-2
    assert relative(state, state_true) < 1e-5


@pytest.mark.parametrize("cut", [1, 31, 32, 50])
def test_two_pieces_with_a_carried_state_equal_one(cut: int) -> None:
    x, dt, A, B, C, D, initial = inputs((2, 77, 4, 8, 2, 16, 32), seed=5)
    reset = torch.rand(2, 77, generator=torch.Generator().manual_seed(6)) < 0.05
    whole, final = ssd_torch(x, dt, A, B, C, D, initial, reset, chunk_size=32)
    first, middle = ssd_torch(
        x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, initial, reset[:, :cut], chunk_size=32
    )
    rest = ssd_torch(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, middle, reset[:, cut:], chunk_size=32)
    assert relative(torch.cat([first, rest[0]], 1), whole) < 1e-5
    assert relative(rest[1], final) < 1e-5


def test_a_reset_hides_the_past_exactly() -> None:
    x, dt, A, B, C, D, initial = inputs((1, 40, 2, 4, 1, 8, 16), seed=7)
    reset = torch.zeros(1, 40, dtype=torch.bool)
    reset[0, 21] = True
    y, state = ssd_torch(x, dt, A, B, C, D, initial, reset, chunk_size=16)
    changed = x.detach().clone()
    changed[:, :21] += 100
    y2, state2 = ssd_torch(changed, dt, A, B, C, D, initial + 5, reset, chunk_size=16)
    assert torch.equal(y[:, 21:], y2[:, 21:])
    assert torch.equal(state, state2)
    assert not torch.equal(y[:, :21], y2[:, :21])


def test_strong_decay_gives_no_nan() -> None:
    x, dt, _, B, C, D, initial = inputs((1, 64, 2, 4, 1, 8, 64), seed=8)
    A = torch.full((2,), -1e4, requires_grad=True)
    y, _ = ssd_torch(x, dt, A, B, C, D, initial, chunk_size=64)
    y.sum().backward()
    for tensor in (x, dt, A, B, C):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
