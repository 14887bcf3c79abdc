"""The precision of products while a text is scored: set for a GPU alone, and put back whoever set it and how."""

from collections.abc import Iterator

import pytest
import torch

from jepamba.evaluate.precision import scoring_precision

matmul = torch.backends.cuda.matmul
CPU, GPU = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = matmul.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    matmul.fp32_precision = before


def test_a_gpu_computes_in_tf32_and_a_cpu_in_fp32() -> None:
    with scoring_precision(CPU):
        assert matmul.fp32_precision != "tf32"
    with scoring_precision(GPU):
        assert matmul.fp32_precision == "tf32"
        # Where the older and the newer switch disagree, PyTorch raises an error.
        assert matmul.allow_tf32
        with scoring_precision(GPU):
            assert matmul.fp32_precision == "tf32"
        assert matmul.fp32_precision == "tf32"


@pytest.mark.parametrize("before", ["none", "ieee", "tf32"])
def test_the_precision_is_put_back_after_an_error(before: str) -> None:
    matmul.fp32_precision = before
    with pytest.raises(KeyError), scoring_precision(GPU):
        raise KeyError
    assert matmul.fp32_precision == before


@pytest.mark.parametrize("before", ["highest", "high"])
def test_the_older_switch_is_put_back(before: str) -> None:
    torch.set_float32_matmul_precision(before)
    with scoring_precision(GPU):
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before
