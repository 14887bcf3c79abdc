"""Tests of FP8 rounding kernels against PyTorch, bit for bit, and of FP8 products against float64.

They use the Triton interpreter, or a GPU if there is one. `tests/test_triton.py` runs this file in a separate process.
"""

import pytest
import torch
from fp8_cases import BOTH, MLP, ROUNDED, beyond, hidden_errors, linear_errors, mlp_errors, relative, unrounded
from torch import Tensor

from jepamba.config import Quant
from jepamba.ops.fp8.linear import round_rows_plain, round_rows_triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def difficult(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Rows with the smallest and the largest numbers, zeros, exact ties, and a single nonzero value."""
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, columns, generator=generator).to(dtype)
    x *= torch.logspace(-37, 37, rows).to(dtype).unsqueeze(1)
    x[0] = 2e-38
    x[rows // 2] = 0
    x[rows // 3, 1:] = 0
    x[rows // 4] = torch.arange(columns).to(dtype) / 16
    return x.to(DEVICE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", [(7, 24), (9, 640), (5, 1424), (6, 2560), (12, 16)], ids=str)
@pytest.mark.parametrize("with_factor", [False, True])
def test_the_kernel_rounds_as_pytorch_does(shape: tuple[int, int], dtype: torch.dtype, with_factor: bool) -> None:
    x = difficult(*shape, dtype)
    factor = torch.logspace(-2, 0, shape[1], device=DEVICE) if with_factor else None
    ours, plain = round_rows_triton(x, factor), round_rows_plain(x, factor)
    assert torch.equal(ours.scale_N1, plain.scale_N1)
    assert torch.equal(ours.codes_NK.float(), plain.codes_NK.float())
    assert ours.codes_NK.dtype == plain.codes_NK.dtype == torch.float8_e4m3fn


def test_rounding_errs_by_as_much_as_is_said() -> None:
    x = torch.randn(64, 640, generator=torch.Generator().manual_seed(0)).bfloat16().to(DEVICE)
    rounded = round_rows_triton(x, None)
    back = unrounded(rounded)
    assert 0.022 < relative(back, x.double()) < 0.027
    assert torch.equal(back[:, :1].sign(), x[:, :1].double().sign())


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize(
    ("bits", "scale", "tokens", "inputs", "outputs"),
    [
        (4, "absmax", 66, 48, 59),
        (5, "clip", 130, 64, 32),
        (2, "absmax", 40, 16, 33),
        (3, "hessian", 98, 80, 48),
        (4, "absmax", 30, 64, 96),
    ],
)
def test_products_of_integer_weights(
    bits: int, scale: str, tokens: int, inputs: int, outputs: int, scaled: bool
) -> None:
    quant = Quant(bits=bits, scale=scale, large=64)  # type: ignore[arg-type]
    errors = linear_errors(tokens, inputs, outputs, quant, DEVICE, scaled=scaled)
    assert beyond(errors, ROUNDED, few=tokens <= inputs) == {}
    # The rounding is there: this is no bf16 product.
    assert min(errors["y"], errors["dx"]) > 1.5e-2


@pytest.mark.parametrize(("bits", "quantized"), [(4, False), (8, True)])
def test_products_of_weights_that_fp8_rounds(bits: int, quantized: bool) -> None:
    errors = linear_errors(130, 64, 59, Quant(bits=bits, large=64), DEVICE, scaled=True, quantized=quantized)
    assert beyond(errors, BOTH, few=False) == {}
    assert max(errors["y"], errors["dx"]) > ROUNDED


@pytest.mark.parametrize("shape", [(5, 24), (3, 700), (4, 2560)], ids=str)
def test_the_mlps_kernels_round_what_they_compute(shape: tuple[int, int]) -> None:
    errors = hidden_errors(*shape, torch.float32, DEVICE)
    # The last bit of what is rounded may differ, and then so may its code.
    bounds = {"h": 1e-5, "du": 1e-5, "h in fp8": 3e-3, "du in fp8": 1e-6}
    assert {name: error for name, error in errors.items() if not error < bounds[name]} == {}


@pytest.mark.parametrize(("tokens", "width", "hidden"), [(66, 32, 64), (258, 64, 128)])
def test_an_mlp(tokens: int, width: int, hidden: int) -> None:
    errors = mlp_errors(tokens, width, hidden, DEVICE)
    assert {name: error for name, error in errors.items() if not error < MLP} == {}
    assert min(errors.values()) > 1e-2
