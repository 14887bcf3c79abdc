"""Tests of the mixer's C++ kernels against PyTorch in float64: output, state and all gradients."""

import pytest
import torch
from torch import Tensor

from jepamba.config import Model, Quant
from jepamba.model.mixer import Mamba2, MixerState
from jepamba.ops import cpp
from jepamba.ops.mixer.cpp import CppMixer, is_supported
from jepamba.ops.mixer.pytorch import mixer_torch
from jepamba.ops.mixer.sizes import MixerSizes
from ops.compare import compare
from ops.cpp_cases import DTYPES, needs_compiler, random

pytestmark = needs_compiler
SIZES = MixerSizes(heads=4, headdim=16, groups=2, d_state=32, chunk_size=16)


def operands(batch: int, tokens: int, dtype: torch.dtype = torch.float32, taps: int = 4) -> list[Tensor]:
    """The rows of the projection, and the weights in the order of the function's arguments."""
    heads, channels = SIZES.heads, SIZES.channels
    return [
        random(batch, tokens, SIZES.inner + channels + heads, dtype=dtype, seed=0),
        0.5 * random(channels, taps, seed=1),
        random(channels, seed=2),
        torch.linspace(-5.0, 1.0, heads),
        torch.linspace(-1.0, 2.5, heads),
        random(heads, seed=3),
        1 + random(SIZES.inner, seed=4),
    ]


@pytest.mark.parametrize(("dtype", "tolerance"), DTYPES)
@pytest.mark.parametrize(
    ("tokens", "carried", "resets", "taps"), [(75, True, True, 4), (32, False, False, 4), (2, True, True, 3)]
)
def test_equals_float64(
    dtype: torch.dtype, tolerance: float, tokens: int, carried: bool, resets: bool, taps: int
) -> None:
    """Sequences of several, whole and partial chunks."""
    inputs = operands(3, tokens, dtype, taps)
    reset = random(3, tokens, seed=5) > 1.2 if resets else None
    history = random(3, SIZES.channels, taps - 1, seed=6)
    state = random(3, SIZES.heads, SIZES.headdim, SIZES.d_state, seed=7) if carried else None

    def plain(*values: Tensor) -> tuple[Tensor, Tensor]:
        before = history if carried else torch.zeros_like(history)
        out, _, final = mixer_torch(*values, before.to(values[0].dtype), state, reset, SIZES)  # type: ignore[arg-type]
        return out, final

    def ours(*values: Tensor) -> tuple[Tensor, Tensor]:
        return CppMixer.apply(*values, history if carried else None, state, reset, SIZES)

    assert is_supported(inputs[0].requires_grad_(), SIZES)
    compare(ours, plain, inputs, tolerance)
    for used in ((0,), (1,)):
        compare(ours, plain, inputs, tolerance, used)


def test_steps_of_every_size_and_broken_values() -> None:
    """Each head has a dt from 1e-18 to 30; NaN in one sequence stays there."""
    inputs = operands(2, 40)
    inputs[3] = torch.tensor([-40.0, -8.0, 1.0, 30.0])
    # Where every step forgets all before it, nothing is left of the gradients of its decays.
    inputs[4] = -inputs[3].clamp_min(0.2).log()

    def gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [value.detach().to(dtype).requires_grad_() for value in inputs]
        if dtype == torch.float32:
            out = CppMixer.apply(*leaves, None, None, None, SIZES)[0]
        else:
            zero = torch.zeros(2, SIZES.channels, 3, dtype=dtype)
            out = mixer_torch(*leaves, zero, None, None, SIZES)[0]  # type: ignore[arg-type]
        return [out, *torch.autograd.grad(out, leaves, random(*out.shape, seed=8).to(dtype))]

    for ours, truth in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert ((ours - truth).norm() / truth.norm()).item() < 1e-5
    inputs[0][0, 3, 5] = float("nan")
    out = CppMixer.apply(*inputs, None, None, None, SIZES)[0]
    assert out.isnan().any(2).any(1).tolist() == [True, False]


def test_results_do_not_depend_on_threads() -> None:
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaves = [value.requires_grad_() for value in operands(5, 40)]
            out, final = CppMixer.apply(*leaves, None, None, None, SIZES)
            results.append([out, final, *torch.autograd.grad(out.square().sum() + final.sum(), leaves)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_a_model_uses_the_kernels_for_training_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without gradients, in other sizes, with a state that needs a gradient, or without a compiler it is PyTorch."""
    mixer = Mamba2(Model(vocab_size=16, d_model=64, headdim=32, d_state=16, n_layer=1), Quant())
    rows = torch.zeros(1, 3, mixer.in_proj.weight.master.shape[0])
    assert mixer._implementation(rows, None) == mixer._forward_cpp
    assert mixer._implementation(rows.double(), None) == mixer._forward_plain
    with torch.no_grad():
        assert mixer._implementation(rows, None) == mixer._forward_plain
    state = mixer.initial_state(1)
    assert mixer._implementation(rows, state) == mixer._forward_cpp
    needed = MixerState(state.conv_BCW, state.ssm_BHPN.requires_grad_())
    assert mixer._implementation(rows, needed) == mixer._forward_plain
    odd = Mamba2(Model(vocab_size=16, d_model=64, headdim=32, d_state=24, n_layer=1), Quant())
    assert odd._implementation(rows, None) == odd._forward_plain
    monkeypatch.setattr(cpp, "compiler", lambda: None)
    cpp.library.cache_clear()
    assert mixer._implementation(rows, None) == mixer._forward_plain
    cpp.library.cache_clear()
