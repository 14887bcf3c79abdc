"""Runs the kernel tests in the Triton interpreter, in a separate process.

The first import of Triton selects the interpreter, and another test may have imported Triton already.
"""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

FILES = sorted((Path(__file__).parent / "gpu").glob("*_interpreted.py"))


@pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="Triton is not installed (it comes with PyTorch)"
)
@pytest.mark.timeout(900)
@pytest.mark.parametrize("marked", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_kernels_in_the_interpreter(marked: str) -> None:
    """One process for all files: each would import PyTorch and Triton again."""
    environment = os.environ if torch.cuda.is_available() else os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", marked, *map(str, FILES)]
    result = subprocess.run(command, env=environment, cwd=FILES[0].parents[2], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-8000:] + result.stderr[-2000:]
    assert " passed" in result.stdout
    assert "skipped" not in result.stdout
