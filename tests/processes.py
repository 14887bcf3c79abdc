"""Runs in real processes, for tests of signals and ranks. A server that has imported everything once forks them.

Each process records the windows that it trains on, step by step, so that a test can compare them.
"""

from __future__ import annotations

import faulthandler
import hashlib
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

SECONDS = 90.0
"""Time limit of every wait."""


def forking() -> ForkServerContext:
    """Processes by a fork of a server that has imported `preloaded`: each costs little."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["preloaded"])
    # Python's server does not get the path of its parent, and ignores what it cannot import.
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), *filter(None, [path])])
    try:
        forkserver.ensure_running()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return context


class Running:
    """`jepamba WORDS` in `size` processes with the environment of torchrun. The output of each is a file in `folder`.

    The exit of this context manager kills the processes.

    Arguments:
        environment: variables of every process.
        setup: a function `module:function` that every process calls first, to prepare a fault.
        fresh: start each process anew and not by a fork, so that it can use a GPU and ends as Python does.
        agent: keep the rendezvous store in this process, as torchrun does, and not in rank 0.
        own: more words for single ranks.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path,
        size: int = 1,
        environment: Mapping[str, str] | None = None,
        setup: str = "",
        fresh: bool = False,
        agent: bool = False,
        own: Mapping[int, Sequence[str]] | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        context = multiprocessing.get_context("spawn") if fresh else forking()
        port, found_by = free_port(), dict[str, str]()
        if agent:
            self.store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
            port = self.store.port
            found_by = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        self.processes: list[BaseProcess] = []
        for rank in range(size):
            variables = dict(environment or {})
            if size > 1:
                variables |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)}
                variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)} | found_by
            with (folder / f"seen-{rank}.txt").open("a") as seen_file:
                seen_file.write("life\n")
            process = context.Process(
                target=_main, args=([*words, *(own or {}).get(rank, [])], folder, rank, variables, setup)
            )
            process.start()
            self.processes.append(process)

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.signal(signal.SIGKILL)
        for process in self.processes:
            process.join(10)

    def wait(self, seconds: float = SECONDS) -> list[int]:
        """The exit codes by rank; minus the signal's number if a signal ended the process."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
        late = [rank for rank, process in enumerate(self.processes) if process.exitcode is None]
        if late:
            # Each prints its stack.
            self.signal(signal.SIGUSR1, *late)
            time.sleep(1)
            self.signal(signal.SIGKILL)
        assert not late, f"ranks {late} still ran after {seconds:.0f} s: {[self.output(rank) for rank in late]}"
        return [process.exitcode or 0 for process in self.processes]

    def wait_for(self, path: Path, lines: int = 1) -> None:
        """Wait until `path` has `lines` lines."""
        deadline = time.monotonic() + SECONDS
        while not path.exists() or path.read_bytes().count(b"\n") < lines:
            if time.monotonic() > deadline or all(process.exitcode is not None for process in self.processes):
                self.signal(signal.SIGKILL)
                raise AssertionError(f"{path} has no {lines} lines: {self.output()}")
            time.sleep(0.005)

    def signal(self, number: signal.Signals, *ranks: int) -> None:
        """Send a signal to the given ranks, or to all living ones."""
        for process in [self.processes[rank] for rank in ranks] or self.processes:
            if process.exitcode is None and process.pid is not None:
                os.kill(process.pid, number)

    def output(self, rank: int = 0) -> str:
        """What a rank wrote to standard output and standard error, over all its starts."""
        return (self.folder / f"output-{rank}.txt").read_text()

    def last_words(self, rank: int = 0) -> str:
        """The last line that jepamba itself wrote in a rank; libraries may write more after it."""
        ours = [line for line in self.output(rank).splitlines() if line.startswith("jepamba: ")]
        assert ours, self.output(rank)
        return ours[-1]


def ended(words: Sequence[str], folder: Path, environment: Mapping[str, str] | None = None) -> tuple[int, str]:
    """The exit code of `jepamba WORDS` in a process, and its output and errors together. `folder` is for its files."""
    with Running(words, folder, environment=environment) as running:
        return running.wait()[0], running.output()


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def seen(folder: Path) -> dict[int, list[str]]:
    """The windows of every step, as hashes of their tokens, that count: what a later life did again replaces it.

    Windows of all ranks together, in the order of the ranks.
    """
    steps: dict[int, dict[int, list[str]]] = {}
    for path in sorted(folder.glob("seen-*.txt")):
        rank = int(path.stem.removeprefix("seen-"))
        for step, windows in _steps(path):
            steps.setdefault(step, {})[rank] = windows
    return {step: [w for rank in sorted(ranks) for w in ranks[rank]] for step, ranks in sorted(steps.items())}


def records(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    """The records of one kind in the log of a run; a line that a kill cut short is none."""
    found = []
    for line in (out / "metrics.jsonl").read_text().splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["kind"] == kind:
            found.append(record)
    return found


def losses(out: Path) -> list[dict[str, Any]]:
    """The records of all steps, without what follows the clock."""
    timed = ("seconds", "tokens_per_s", "memory_mb")
    return [{key: value for key, value in record.items() if key not in timed} for record in records(out)]


def _steps(path: Path) -> Iterator[tuple[int, list[str]]]:
    step, windows = 0, list[str]()
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "step":
            if step:
                yield step, windows
            step, windows = int(rest), []
        elif step:
            windows += rest.split()
    if step:
        yield step, windows


def _main(words: list[str], folder: Path, rank: int, environment: dict[str, str], setup: str) -> None:
    os.environ.update(environment)
    log = os.open(folder / f"output-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    faulthandler.register(signal.SIGUSR1)
    import torch

    torch.set_num_threads(1)
    _record(folder / f"seen-{rank}.txt")
    # A report takes longer than these runs, and is no part of them.
    from jepamba.report import html

    html.write_report = lambda out: out  # type: ignore[assignment]
    if setup:
        module, _, name = setup.partition(":")
        getattr(__import__(module), name)()
    from jepamba.__main__ import run

    run(words)


def _record(path: Path) -> None:
    """Write down the windows of every batch that is taken, and before them the step that takes them."""
    from jepamba.data import Prefetcher
    from jepamba.train.step import Trainer

    file = path.open("a", buffering=1)
    take, train = Prefetcher.next, Trainer.train_step

    def taken(self: Any, *arguments: Any) -> Any:
        batch = take(self, *arguments)
        rows = [inputs.numpy().tobytes() + targets.numpy().tobytes() for inputs, targets in _rows(batch)]
        file.write("windows " + " ".join(hashlib.sha256(row).hexdigest()[:16] for row in rows) + "\n")
        return batch

    def trained(trainer: Any, *arguments: Any) -> Any:
        file.write(f"step {trainer.state.counters.step + 1}\n")
        return train(trainer, *arguments)

    Prefetcher.next, Trainer.train_step = taken, trained  # type: ignore[method-assign]


def _rows(batch: Any) -> Iterator[tuple[Any, Any]]:
    return zip(batch.inputs_BT, batch.targets_BT, strict=True)
