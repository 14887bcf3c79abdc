"""The device of a run and the precision of its passes."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

import torch

from jepamba.config import Train
from jepamba.distributed import local_rank
from jepamba.errors import UserError
from jepamba.ops.cpp import compiler


@dataclass(frozen=True)
class DeviceConfig:
    """A device and the precision of its training passes."""

    device: torch.device
    dtype: torch.dtype
    why: str
    """One sentence for the log: the choice and its reason."""

    def autocast(self) -> AbstractContextManager[None]:
        """The context of a training pass: bf16 autocast, or nothing in fp32."""
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def memory_mb(self) -> float:
        """Peak memory in MB (10⁶ bytes): of the GPU's allocator, or the resident set of the process."""
        if self.device.type == "cuda":
            # `max_memory_allocated` flattens a hundred values first, while the GPU may be waiting for the next step.
            statistics = torch.cuda.memory_stats_as_nested_dict(self.device)
            return float(statistics["allocated_bytes"]["all"]["peak"]) / 1e6
        import resource

        # Linux counts in KiB, macOS in bytes.
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def choose_device(config: Train) -> DeviceConfig:
    """Choose device and precision for `config`. Of several GPUs, a process takes the one with its local rank.

    Raises:
        UserError: if the device is not available to this process.
    """
    available = torch.cuda.is_available()
    if config.device == "cuda" and not available:
        raise UserError("train.device = cuda, but PyTorch sees no GPU; set train.device to auto or cpu")
    if config.threads > 0:
        torch.set_num_threads(config.threads)
    on_gpu = available and config.device != "cpu"
    device = torch.device("cpu")
    if on_gpu:
        if local_rank() >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank()} of this machine has no GPU: there are {torch.cuda.device_count()}; start one "
                "process per GPU (torchrun --nproc-per-node gpu), or set train.device to cpu"
            )
        device = torch.device("cuda", local_rank())
        torch.cuda.set_device(device)
    if not on_gpu:
        keep_freed_memory()
    chosen, reason = config.precision, "set by train.precision"
    if chosen == "auto" and on_gpu:
        chosen, reason = "bf16", "tensor cores"
    elif chosen == "auto":
        fast = has_bf16_products()
        chosen, reason = ("bf16", "AVX512-BF16") if fast else ("fp32", "no AVX512-BF16")
    dtype = torch.bfloat16 if chosen == "bf16" else torch.float32
    threads = torch.get_num_threads()
    cpu = f"CPU, {threads} thread{'' if threads == 1 else 's'}, {_kernels()},"
    name = torch.cuda.get_device_name(device) if on_gpu else cpu
    return DeviceConfig(
        device, dtype, f"computing on {name} in {chosen} ({reason}); master weights in {config.masters}"
    )


def has_bf16_products() -> bool:
    """Whether this CPU has instructions for products of bf16 (AVX512-BF16, which every CPU with AMX has too)."""
    return bool(torch.cpu._is_avx512_bf16_supported())


def _kernels() -> str:
    """The kind of kernels of a training pass on the CPU."""
    path = compiler()
    return f"kernels compiled by {Path(path).name}" if path else "without a C++ compiler at half the speed"


def keep_freed_memory() -> None:
    """Let glibc keep freed memory in the process instead of returning it to the system.

    By default each large tensor is mapped and unmapped, and the page faults take up to a fifth of a training step
    (docs/results/cpu-step-2026-11-29.md). Other C libraries have no such options.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold, most = -1, -3, (1 << 31) - 1
        mallopt(m_trim_threshold, most)
        mallopt(m_mmap_threshold, most)
