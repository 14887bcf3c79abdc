"""C++ kernels for the CPU, compiled for this machine by its compiler when they are first needed.

A compilation takes one to two seconds, and its result is kept in the user's cache. Without a compiler, operators run in
plain PyTorch. The kernels use the OpenMP runtime that PyTorch has loaded, so `torch.set_num_threads` applies to them.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import torch
from torch import Tensor

from jepamba.data.source import cache_folder
from jepamba.errors import UserError
from jepamba.folder_lock import work_folder
from jepamba.ops.dispatch import kernels_enabled

DTYPES = {torch.float32: "float", torch.bfloat16: "bf16"}
"""The dtypes of activations that kernels have, by the suffix of their names."""
LANES = 16
"""The most values of a vector: rows must have a multiple."""
_LIMIT_S = 120


@functools.cache
def compiler() -> str | None:
    """Return the path of the C++ compiler: `$CXX`, else g++ or clang++; None if there is none."""
    candidates = [os.environ.get("CXX", ""), "g++", "clang++"]
    return next((found for name in candidates if name and (found := shutil.which(name))), None)


def kernels_of(operator: str, **constants: int) -> ctypes.CDLL | None:
    """Return the `library` of `operator`; None in a bundle, which has no C++ sources."""
    file = globals().get("__file__")
    return None if file is None else library(Path(file).parent / operator / "kernels.cpp", **constants)


@functools.cache
def library(source: Path, flags: tuple[str, ...] = (), **constants: int) -> ctypes.CDLL | None:
    """Compile `source` with further `flags` and the macros `constants`, and load it.

    None without a compiler, and with a warning if the compilation or the loading fails.
    """
    if compiler() is None:
        return None
    header = Path(__file__).parent / "vectors.h"
    command = [*_command(), *flags, *(f"-D{name}={value}" for name, value in constants.items())]
    texts = [source.read_bytes(), header.read_bytes(), " ".join(command).encode(), _processor().encode()]
    name = f"{source.parent.name}-{hashlib.sha256(b'|'.join(texts)).hexdigest()[:32]}.so"
    try:
        folder = cache_folder("") / "kernels"
        if not (folder / name).exists():
            with work_folder(folder, name) as scratch:
                out = scratch / name
                arguments = [*command, f"-I{header.parent}", str(source), "-o", str(out)]
                subprocess.run(arguments, check=True, capture_output=True, timeout=_LIMIT_S)
                out.replace(folder / name)
        return ctypes.CDLL(str(folder / name))
    except (UserError, OSError, subprocess.SubprocessError) as error:
        warnings.warn(f"{source.parent.name}: no C++ kernel, slower code instead: {_reason(error)}", stacklevel=2)
        return None


def _reason(error: Exception) -> str:
    """One line: that the time ran out, the compiler's first error (a note may precede it), or the exception's text."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the compiler took longer than {error.timeout:g} s"
    printed = getattr(error, "stderr", None) or b""
    lines = [line for line in printed.decode(errors="replace").splitlines() if line.strip()] or [str(error)]
    return next((line for line in lines if "error:" in line), lines[0])


def use_cpp(tensor: Tensor) -> bool:
    """Whether kernels support the device and dtype of `tensor`.

    Only passes with gradients use them, so scores do not depend on whether there is a compiler.
    """
    enabled = kernels_enabled() and not torch.compiler.is_compiling()
    return enabled and tensor.device.type == "cpu" and tensor.dtype in DTYPES


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Return the address of a contiguous tensor's data, or null."""
    assert tensor is None or tensor.is_contiguous()
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


def _command() -> list[str]:
    x86 = platform.machine() in ("x86_64", "AMD64")
    native = "-march=native" if x86 else "-mcpu=native"
    flags = ["-std=c++17", "-O3", native, "-fno-math-errno", "-ffp-contract=fast", "-shared", "-fPIC", "-w"]
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        flags.append("-mprefer-vector-width=512")
    # Apple's compiler has no OpenMP: the kernels run in one thread there.
    return [str(compiler()), *flags, *([] if sys.platform == "darwin" else ["-fopenmp"])]


def _processor() -> str:
    """The instruction sets of the processor: a cache can be shared by machines that differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.platform()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.platform())
