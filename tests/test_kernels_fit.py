"""No kernel asks for more shared memory than an H100 has. Tests without a GPU do not launch kernels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

H100_SHARED = 232_448
"""Bytes of shared memory that a block may have: 227 KiB (CUDA C++ Programming Guide, compute capability 9.0)."""


@pytest.mark.slow
@pytest.mark.timeout(1300)  # six minutes on slow cores
def test_every_kernel_of_a_step_fits_the_shared_memory(tmp_path: Path) -> None:
    words = [sys.executable, str(Path(__file__).with_name("kernels_fit_cases.py")), str(tmp_path)]
    environment = {**os.environ, "TRITON_INTERPRET": "0", "CUDA_VISIBLE_DEVICES": "", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, timeout=1200, env=environment)
    shared = json.loads(done.stdout)
    assert {"ssd.triton_kernels.forward_kernel", "mlp.triton_kernels.down_gradient_kernel"} <= shared.keys()
    assert {name: size for name, size in shared.items() if size > H100_SHARED} == {}
