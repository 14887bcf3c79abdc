"""A rank under torchrun that raises, is killed or hangs ends the other, and a long phase of rank 0 does not."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("failing_rank.py")


def launched(how: str, timeout: int, seconds: float = 0.0) -> tuple[int, str, float]:
    """Torchrun's exit code, all that was printed, and the seconds that it took."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"JEPAMBA_COLLECTIVE_TIMEOUT": str(timeout), "OMP_NUM_THREADS": "1"}
    started = time.monotonic()
    done = subprocess.run(
        [*command, str(SCRIPT), how, str(seconds)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=250,
        check=False,
    )
    return done.returncode, done.stdout, time.monotonic() - started


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        pytest.param("raise", "ValueError: a broken kernel", marks=pytest.mark.slow),
        pytest.param("mistake", "UserError: /data/shard.bin: cannot be read", marks=pytest.mark.slow),
        pytest.param("kill", "Signal 9 (SIGKILL)", marks=pytest.mark.slow),
    ],
)
def test_a_rank_that_raises_or_is_killed_ends_the_other_with_its_reason(how: str, reason: str) -> None:
    code, printed, seconds = launched(how, timeout=300)
    assert code == 1
    assert seconds < 60
    summary = printed[printed.index("Root Cause") :]
    assert "rank      : 1" in summary, printed
    assert reason in summary, printed


def test_a_rank_that_hangs_is_ended_by_the_time_out() -> None:
    code, printed, seconds = launched("stop", timeout=3)
    assert code == 1
    assert seconds < 60
    assert "another rank failed, was killed or does not answer" in printed


@pytest.mark.slow
def test_a_phase_of_rank_0_may_outlast_the_time_out_of_collectives() -> None:
    code, printed, _ = launched("phase", timeout=2, seconds=5)
    assert (code, "finished" in printed) == (0, True), printed


@pytest.mark.slow
def test_a_two_minute_phase_of_rank_0() -> None:
    code, printed, _ = launched("phase", timeout=60, seconds=120)
    assert (code, "finished" in printed) == (0, True), printed


def test_a_wait_that_never_ends_ends_its_process() -> None:
    """As a rank does that waits in a CUDA graph: it runs no Python, so no exception can reach it."""
    script = (
        "import ctypes\n"
        "from jepamba.distributed import wait_time_limit\n"
        "with wait_time_limit(True):\n"
        "    ctypes.PyDLL(None).sleep(60)\n"  # With Python's lock held.
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"JEPAMBA_COLLECTIVE_TIMEOUT": "1"},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 1
    assert "Timeout (0:00:02)!" in done.stderr
