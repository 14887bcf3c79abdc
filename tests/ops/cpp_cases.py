"""What the tests of the C++ kernels share."""

import pytest
import torch
from torch import Tensor

from jepamba.ops.cpp import compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="needs a C++ compiler")
DTYPES = [(torch.float32, 2e-6), (torch.bfloat16, 1e-2)]
"""Each dtype with its bound of a relative error."""


def random(*shape: int, dtype: torch.dtype = torch.float32, seed: int) -> Tensor:
    """A normal tensor on the CPU."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
