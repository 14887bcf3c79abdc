"""What is done to one of two processes that train together, and what must become of the other: over gloo and NCCL."""

from __future__ import annotations

import signal
from pathlib import Path

from jepamba.train.checkpoint import checkpoints
from processes import Running, records


def kill_one(running: Running, out: Path, dead: int, lines: int, *, in_graphs: bool = False) -> None:
    """SIGKILL to rank `dead` once the log has so many lines: the other ends by itself, with a line that says so.

    With `in_graphs` it may wait for a collective in a CUDA graph, and is then killed as torchrun does.
    """
    running.wait_for(out / "metrics.jsonl", lines)
    running.signal(signal.SIGKILL, dead)
    if in_graphs:
        running.processes[1 - dead].join(20)
        if running.processes[1 - dead].exitcode is None:
            running.signal(signal.SIGKILL, 1 - dead)
            assert running.wait(60) == [-signal.SIGKILL] * 2
            return
    # A minute is what is promised.
    codes = running.wait(60)
    assert codes[dead] == -signal.SIGKILL
    assert codes[1 - dead] == 2, running.output(1 - dead)
    assert running.last_words(1 - dead).startswith("jepamba: another rank failed, was killed or does not answer")


def stop_one(running: Running, out: Path, still: int, lines: int, seconds: float) -> None:
    """SIGSTOP to rank `still`: the other ends within so many seconds, with a line that says so."""
    running.wait_for(out / "metrics.jsonl", lines)
    running.signal(signal.SIGSTOP, still)
    running.processes[1 - still].join(seconds)
    ended = running.processes[1 - still].exitcode
    running.signal(signal.SIGKILL)
    running.wait()
    # A collective's time-out, the watchdog of NCCL, or the time limit of a wait, whichever comes first.
    assert ended not in (None, 0), running.output(1 - still)
    reasons = ("another rank failed, was killed or does not answer", "Watchdog caught", "Timeout (")
    assert any(reason in running.output(1 - still) for reason in reasons), running.output(1 - still)


def terminate_one(running: Running, out: Path, signaled: int, lines: int) -> None:
    """SIGTERM to rank `signaled`: both end after the same step, of which there is a checkpoint."""
    running.wait_for(out / "metrics.jsonl", lines)
    running.signal(signal.SIGTERM, signaled)
    assert running.wait(60) == [143, 143], [running.output(rank) for rank in range(2)]
    done = records(out)[-1]["step"]
    assert checkpoints(out / "checkpoints")[-1].name == f"step-{done:09d}"
