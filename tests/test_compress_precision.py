"""Compression computes in full fp32 precision, whatever the process has set and by which of PyTorch's switches."""

from collections.abc import Iterator

import pytest
import torch

from jepamba.compress.token_coding import _one_thread

ON_CPU, ON_GPU = torch.backends.mkldnn.matmul, torch.backends.cuda.matmul


@pytest.fixture(autouse=True)
def put_back() -> Iterator[None]:
    before = ON_CPU.fp32_precision, ON_GPU.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    ON_CPU.fp32_precision, ON_GPU.fp32_precision = before


@pytest.mark.parametrize("older", ["highest", "high", "medium"])
def test_the_older_switch_is_put_back(older: str) -> None:
    torch.set_float32_matmul_precision(older)
    with _one_thread():
        assert ON_CPU.fp32_precision == "ieee"
    assert torch.get_float32_matmul_precision() == older


@pytest.mark.parametrize("newer", [ON_CPU, ON_GPU])
def test_the_newer_switches_are_put_back(newer: object) -> None:
    newer.fp32_precision = "tf32"  # type: ignore[attr-defined]
    with _one_thread():
        assert ON_CPU.fp32_precision == "ieee"
    assert newer.fp32_precision == "tf32"  # type: ignore[attr-defined]
