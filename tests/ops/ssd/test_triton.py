"""Tests of the Triton SSD in fp32 in the Triton interpreter against the float64 recurrence.

The interpreter has no bfloat16 products; test_gpu.py tests them.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from jepamba.errors import UserError
from jepamba.ops.ssd import ssd_reference, ssd_torch, triton_segments
from jepamba.ops.ssd.triton import ssd_triton
from jepamba.ops.ssd.triton_launch import decay_tensors, tiles
from jepamba.ops.ssd.triton_passes import run_backward, run_forward
from jepamba.ops.ssd.triton_segments import num_segments
from ops.compare import DEVICE, beyond, relative
from ops.ssd.cases import Case, errors, inputs, run

SMALL = Case(1, 20, 2, 32, 2, 16, 16, resets=0.1, initial=True)
CASES = [
    Case(1, 20, 2, 32, 1, 16, 16),
    Case(2, 37, 4, 32, 2, 16, 16, resets=0.1, initial=True),
    Case(1, 1, 2, 32, 1, 16, 64, initial=True),
    Case(1, 70, 3, 64, 1, 64, 64, resets=0.05, initial=True, keep=False),
    Case(1, 40, 2, 128, 2, 128, 32, resets=0.05, initial=True),
    # Long enough for segments.
    Case(2, 128, 1, 32, 1, 16, 16, resets=0.03, initial=True, keep=False),
    Case(1, 1024, 2, 32, 1, 16, 16, resets=0.003, initial=True, keep=False),
]


@pytest.mark.parametrize(
    "case",
    [CASES[1], CASES[2], *(pytest.param(CASES[i], marks=pytest.mark.slow) for i in (0, 3, 4, 5, 6))],
    ids=str,
)
def test_outputs_and_gradients_equal_the_recurrence(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_segments, "MIN_CHUNKS", 2)
    assert beyond(errors(case, torch.float32, DEVICE), 1e-5) == {}


def test_slices_of_anything_are_read_right() -> None:
    """A and D can be strided. An output that would need a copy is refused."""
    values, reset, _ = inputs(Case(1, 40, 2, 32, 1, 16, 16, resets=0.1), torch.float32, DEVICE)
    apart = [torch.stack([value, torch.full_like(value, 7.0)], dim=-1)[..., 0] for value in values]
    assert not any(value.is_contiguous() for value in apart)
    for ours, truth in zip(ssd_triton(*apart, None, reset), ssd_triton(*values, None, reset), strict=True):
        assert relative(ours, truth) < 1e-6
    with pytest.raises(ValueError, match="cannot write to"):
        tiles(torch.empty(1, 40, 2, 33, device=DEVICE)[..., :32], 16, 32, written=True)
    with pytest.raises(UserError, match="one value for each of 2 heads"):
        ssd_triton(*values[:2], values[2][:1], *values[3:], None, reset)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    batch=st.integers(1, 2),
    tokens=st.integers(1, 40),
    per_group=st.integers(1, 3),
    groups=st.integers(1, 2),
    chunk_size=st.sampled_from([16, 32]),
    resets=st.sampled_from([0.0, 0.1, 0.9]),
    initial=st.booleans(),
    keep=st.booleans(),
    seed=st.integers(0, 9),
)
def test_random_shapes_and_resets(
    batch: int,
    tokens: int,
    per_group: int,
    groups: int,
    chunk_size: int,
    resets: float,
    initial: bool,
    keep: bool,
    seed: int,
) -> None:
    case = Case(batch, tokens, per_group * groups, 32, groups, 16, chunk_size, resets, initial, keep)
    worst = errors(case, torch.float32, DEVICE, seed)
    # What is a tiny remainder of large terms (few tokens, everything reset) is held to those terms' rounding instead.
    assert beyond(worst, 2e-5) == {}


def test_when_sequences_are_cut() -> None:
    assert num_segments(10, 16384, 32) == 32
    assert num_segments(160, 1024, 32) == 1  # many sequences: enough to do
    assert num_segments(10, 16384 + 32, 32) == 1  # no equal parts of whole chunks
    assert num_segments(1, 512, 16) == 4
    assert num_segments(1, 256, 16) == 1  # two are not worth it


def test_gradient_where_dt_is_zero() -> None:
    args, _, weights = inputs(Case(1, 20, 2, 32, 1, 16, 16), torch.float32, DEVICE)
    with torch.no_grad():
        args[1][:, 3:9] = 0
    ours = run(ssd_triton, args, None, weights, chunk_size=16)
    truth = run(ssd_torch, args, None, weights, chunk_size=16)
    for a, b in zip(ours, truth, strict=True):
        assert relative(a, b) < 1e-5


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16], ids=str)
def test_softplus_keeps_its_digits(width: torch.dtype) -> None:
    """Input from a slice of rows whose length is not a multiple of the chunk."""
    rows = torch.linspace(-80, 60, 2 * 37 * 12, device=DEVICE).view(2, 37, 12).to(width)
    raw, bias, A_log = rows[..., 3:8], torch.randn(5, device=DEVICE), torch.randn(5, device=DEVICE)
    decays, _ = decay_tensors(raw, A_log, None, 16, bias)
    dt = torch.nn.functional.softplus((raw.float() + bias).double()).transpose(1, 2)
    assert ((decays[0, ..., :37] - dt) / dt).abs().max() < (2e-5 if DEVICE == "cuda" else 1e-6)
    assert not decays[0, ..., 37:].any()
    logs = (dt * -A_log.double().exp()[:, None])[..., :32].unflatten(-1, (2, 16)).cumsum(-1).flatten(-2)
    assert relative(decays[1, ..., :32] * math.log(2), logs) < 1e-6


@pytest.mark.slow
def test_gradients_of_what_a_mixer_has_for_dt() -> None:
    """Raw bfloat16 dt with a bias, and A_log. The gradient is written to a slice of padded rows."""
    case = Case(2, 37, 4, 32, 2, 16, 16, resets=0.1, initial=True)
    args, reset, weights = inputs(case, torch.float32, DEVICE)
    x, _, _, B, C, D, initial = (value.detach() for value in args)
    rows = torch.randn(2, 37, 20, device=DEVICE).bfloat16()
    raw, bias = rows[..., 5:9], torch.tensor([-9.0, -2.0, 1.0, 25.0], device=DEVICE)
    A_log = torch.tensor([2.0, 1.0, -1.0, -5.0], device=DEVICE)
    leaves = [value.double().requires_grad_() for value in (raw, A_log, D, bias)]
    read = (torch.nn.functional.softplus(leaves[0] + leaves[3]), -leaves[1].exp(), B, C, leaves[2], initial)
    truth = torch.autograd.grad(ssd_reference(x, *read, reset), leaves, [weight.double() for weight in weights])

    *_, starts, decays, documents = run_forward(x, raw, A_log, B, C, D, initial, reset, 16, True, bias)
    drows = torch.full_like(rows, 7.0)
    into = (torch.empty_like(x), drows[..., 5:18], torch.empty_like(B), torch.empty_like(C))
    for kept in ((starts, decays, documents), (starts[:0], decays, documents)):
        parts, _ = run_backward(*weights, x, raw, A_log, B, C, D, initial, reset, *kept, 16, into, bias)
        assert torch.equal(drows[..., :5], torch.full_like(drows[..., :5], 7.0))
        assert torch.equal(drows[..., 18:], torch.full_like(drows[..., 18:], 7.0))
        assert not drows[..., 9:18].any()
        for h in range(4):
            # The interpreter cuts to bfloat16 where a GPU rounds.
            assert relative(drows[..., 5 + h], truth[0][..., h]) < 6e-3
        for ours, true in zip(parts.sum(0), truth[1:], strict=True):
            assert relative(ours, true) < 1e-5


def test_only_one_output_used() -> None:
    args, reset, weights = inputs(SMALL, torch.float32, DEVICE)
    for which in (0, 1):
        ours = torch.autograd.grad(
            ssd_triton(*args, reset, chunk_size=16)[which], args, weights[which], allow_unused=True
        )
        truth = torch.autograd.grad(
            ssd_torch(*args, reset, chunk_size=16)[which], args, weights[which], allow_unused=True
        )
        for a, b in zip(ours, truth, strict=True):
            assert (a is None or not a.any()) if b is None else relative(a, b) < 1e-5


def test_twice_the_same_bits_and_checkpointed_too() -> None:
    args, reset, weights = inputs(SMALL, torch.float32, DEVICE)

    def saved(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        result: tuple[torch.Tensor, torch.Tensor] = checkpoint(ssd_triton, *values, use_reentrant=False)
        return result

    once = run(ssd_triton, args, reset, weights)
    for other in (run(ssd_triton, args, reset, weights), run(saved, args, reset, weights)):
        for a, b in zip(once, other, strict=True):
            assert torch.equal(a, b)


def test_operator_is_registered_as_torch_compile_needs_it() -> None:
    args, reset, _ = inputs(SMALL, torch.float32, DEVICE)
    torch.library.opcheck(
        torch.ops.jepamba.ssd_forward.default,
        (*args, reset, 16, True),
        test_utils=("test_schema", "test_faketensor", "test_autograd_registration"),
    )


def test_operator_equals_the_eager_path() -> None:
    args, reset, weights = inputs(SMALL, torch.float32, DEVICE)

    def operator(*values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, final, *_ = torch.ops.jepamba.ssd_forward(*values, 64, True)
        return y, final

    for a, b in zip(run(operator, args, reset, weights), run(ssd_triton, args, reset, weights), strict=True):
        assert torch.equal(a, b)


def test_two_pieces_with_a_carried_state_equal_one() -> None:
    args, reset, _ = inputs(Case(2, 50, 4, 32, 2, 16, 16, resets=0.05, initial=True), torch.float32, DEVICE)
    x, dt, A, B, C, D, initial = (value.detach() for value in args)
    assert reset is not None
    whole, final = ssd_triton(x, dt, A, B, C, D, initial, reset, chunk_size=16)
    cut = 23
    first, middle = ssd_triton(
        x[:, :cut], dt[:, :cut], A, B[:, :cut], C[:, :cut], D, initial, reset[:, :cut], chunk_size=16
    )
    rest, end = ssd_triton(x[:, cut:], dt[:, cut:], A, B[:, cut:], C[:, cut:], D, middle, reset[:, cut:], chunk_size=16)
    assert relative(torch.cat([first, rest], 1), whole) < 1e-5
    assert relative(end, final) < 1e-5


def test_unsupported_inputs_are_refused() -> None:
    args, _, _ = inputs(Case(1, 20, 2, 32, 1, 16, 16), torch.float32, DEVICE)
    x, dt, A, B, C, D = (value.detach() for value in args)
    cases = [
        ((x[..., :20], dt, A, B, C, D), {}, "head dimension 20"),
        ((x.half(), dt, A, B, C, D), {}, "one dtype"),
        ((x, dt, A, B, C, D), {"chunk_size": 48}, "chunk_size 48"),
        ((x[:, :0], dt[:, :0], A, B[:, :0], C[:, :0], D), {}, "at least one token"),
        ((x, dt[:, :3], A, B, C, D), {}, "shapes do not match"),
        ((x, dt, A, B, C, D, torch.zeros(1, 2, 32, 32)), {}, "initial state"),
        ((x, dt, A, B, C, D, None, torch.zeros(1, 20)), {}, "reset must be bool"),
    ]
    for values, options, words in cases:
        with pytest.raises(UserError, match=words):
            ssd_triton(*values, **options)  # type: ignore[arg-type]
