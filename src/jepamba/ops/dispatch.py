"""Selects between PyTorch and kernels, and computes launch settings. It does not import Triton."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import find_spec

import torch
from torch import Tensor

PROGRAMS = 1056
"""Programs of a kernel with many rows per program: 8 for each of the 132 multiprocessors of an H100."""
SHARED_MEMORY = 232_448
"""Bytes of shared memory per program from which on large tiles are used: those of an H100. Less is untested."""
HAS_TRITON = find_spec("triton") is not None

_enabled = True


@contextlib.contextmanager
def use_kernels(enabled: bool) -> Iterator[None]:
    """A context that enables or disables the kernels, those in C++ too. Disabled, all operators are plain PyTorch."""
    global _enabled
    previous, _enabled = _enabled, enabled
    try:
        yield
    finally:
        _enabled = previous


def kernels_enabled() -> bool:
    """Whether operators may use kernels."""
    return _enabled


def use_triton(tensor: Tensor) -> bool:
    """Whether the Triton kernels support `tensor`: fp32 or bf16 on a CUDA device, with Triton installed."""
    return _enabled and HAS_TRITON and tensor.is_cuda and tensor.dtype in (torch.float32, torch.bfloat16)


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which kernels launch on the device of `tensor`."""
    return torch.cuda.device(tensor.device) if tensor.is_cuda else contextlib.nullcontext()


@lru_cache
def shared_memory() -> int:
    """Return the bytes of shared memory that a program can have on the current GPU; 0 without a GPU."""
    if not torch.cuda.is_available():
        return 0
    return int(getattr(torch.cuda.get_device_properties(), "shared_memory_per_block_optin", 0))


def large_tiles_fit() -> bool:
    """Whether a program on the current GPU can have the shared memory of an H100, which the largest tiles need."""
    return shared_memory() >= SHARED_MEMORY


def num_programs(rows: int) -> int:
    """Return the number of programs for `rows` rows."""
    return min(rows, PROGRAMS)


def num_warps(block: int) -> int:
    """Return the warps for a row of `block` values: 8 values (16 bytes of bf16) per thread."""
    return min(max(block // 256, 1), 16)
