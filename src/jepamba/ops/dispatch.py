"""Whether the Triton kernels serve a tensor, and what their launches share; imported where there is no Triton too."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from importlib.util import find_spec

import torch
from torch import Tensor

PROGRAMS = 1056
"""Programs of a kernel that takes many rows each: eight for each of a large GPU's 132 multiprocessors."""
HAS_TRITON = find_spec("triton") is not None

_wanted = True


@contextlib.contextmanager
def triton_kernels(wanted: bool) -> Iterator[None]:
    """Inside, the Triton kernels are used where they can be, or not at all (plain PyTorch everywhere)."""
    global _wanted
    before, _wanted = _wanted, wanted
    try:
        yield
    finally:
        _wanted = before


def use_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels serve `tensor`: it lies on a CUDA device, in fp32 or bf16, and Triton is there."""
    return _wanted and HAS_TRITON and tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which a launch goes to the tensor's device."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


def num_programs(rows: int, most: int = PROGRAMS) -> int:
    """How many programs share `rows` rows."""
    return min(rows, most)


def num_warps(block: int) -> int:
    """Warps for a row of `block` values: 8 values a thread, 16 bytes of bf16."""
    return min(max(block // 256, 1), 16)
