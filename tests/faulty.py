"""Faults that are set up inside a process before its run begins; see `setup` of `Running`."""

from __future__ import annotations

import atexit
import os
import resource
import signal
import sys
import time
from pathlib import Path
from threading import Timer
from typing import Any, NoReturn

import torch.distributed

from dashboard import Dashboard
from jepamba import __main__ as end
from jepamba.data import Prefetcher, writer
from jepamba.errors import UserError
from jepamba.evaluate import windowed
from jepamba.presets import load_preset
from jepamba.train import export, train
from jepamba.train.loop import Loop


def slow_to_end() -> None:
    """Python's shutdown takes minutes, as when NCCL is destroyed while captured graphs exist."""
    atexit.register(time.sleep, 300)


def signal_while_scoring() -> None:
    """Rank SIGNALED_RANK receives SIGNAL at its first batch of the final scores."""
    if _is_signaled():
        windowed.batches = lambda *_: _send_signal()  # type: ignore[assignment, return-value]


def signal_while_packing() -> None:
    """Rank 0 receives SIGNAL while it packs and the other rank waits for it."""
    if os.environ["RANK"] == "0":
        export.pack = lambda *_: _send_signal()  # type: ignore[assignment, return-value]


def signal_while_tokenizing() -> None:
    """The process receives SIGNAL when it has encoded its first documents."""
    writer.FolderWriter._count = lambda *_: _send_signal()  # type: ignore[method-assign, assignment]


def _is_signaled() -> bool:
    return os.environ["RANK"] == os.environ["SIGNALED_RANK"]


def _send_signal() -> None:
    os.kill(os.getpid(), signal.Signals[os.environ["SIGNAL"]])


def last_rank_is_terminated_while_validating() -> None:
    """The last rank receives SIGTERM after its second batch. Each of its batches appends a line to the file BATCHES."""
    take, last = windowed.batches, int(os.environ.get("WORLD_SIZE", "1")) - 1

    def taken(*arguments: Any) -> Any:
        for number, batch in enumerate(take(*arguments)):
            if int(os.environ.get("RANK", "0")) == last:
                with open(os.environ["BATCHES"], "a") as file:
                    file.write(f"{number}\n")
                if number == 1:
                    os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    windowed.batches = taken


def bad_disk(rank: int | None = None) -> None:
    """The fifth read of data fails on one rank: `rank`, or BAD if it is not given."""
    bad = os.environ["BAD"] if rank is None else str(rank)
    take, reads = Prefetcher.next, []

    def failing(self: Any, *arguments: Any) -> Any:
        reads.append(1)
        if len(reads) == 5 and os.environ["RANK"] == bad:
            raise UserError("/data/text_train_000003.bin: the shard can no longer be read (Input/output error)")
        return take(self, *arguments)

    Prefetcher.next = failing  # type: ignore[method-assign]


def dashboard(slow: float = 0.0) -> None:
    """The stand-in for trackio, with its calls in the file CALLS."""
    sys.modules["trackio"] = Dashboard("trackio", Path(os.environ["CALLS"]), slow)


def slow_dashboard() -> None:
    """The dashboard takes 3 s to finish."""
    dashboard(3.0)


def terminated_while_packing() -> None:
    """Rank 0, which has a dashboard, receives SIGTERM where it would pack."""
    dashboard()

    def pack(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)

    export.pack = pack  # type: ignore[assignment]


def fast_clock_on_rank_1() -> None:
    """The clock of rank 1 is a hundred times faster."""
    if os.environ["RANK"] == "1":
        original = time.perf_counter
        time.perf_counter = lambda: 100 * original()


def folder_of_its_own() -> None:
    """Each rank runs in the folder of its number in FOLDERS, as if on its own machine."""
    os.chdir(os.path.join(os.environ["FOLDERS"], os.environ["RANK"]))


def a_script_of_ones_own() -> None:
    """A script in place of the command: it catches the error and exits through Python's shutdown with code 3."""
    bad_disk(1)

    def run(words: Any) -> NoReturn:
        try:
            train(load_preset(words[1]), Path(words[3]))
        except UserError:
            sys.exit(3)
        sys.exit(0)

    end.run = run


def slow_last_work_on_rank_0() -> None:
    """Rank 0 works on after the last collective, until the file DONE exists."""
    if os.environ["RANK"] == "0":
        work = Loop.run_to_end

        def slowly(self: Any) -> Any:
            summary = work(self)
            while not os.path.exists(os.environ["DONE"]):
                time.sleep(0.01)
            return summary

        Loop.run_to_end = slowly  # type: ignore[method-assign]


def ends_with_raised_error() -> None:
    """With a process group, the command raises the error that RAISED evaluates to. Its standard output is full."""
    os.environ |= {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)

    def main(words: Any) -> NoReturn:
        sys.stdout = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
        sys.stdout.write("words that do not get out")
        error: BaseException = eval(os.environ["RAISED"])
        raise error

    end.main = main


def in_folder() -> None:
    """The process works in the folder IN_FOLDER."""
    os.chdir(os.environ["IN_FOLDER"])


def small_files() -> None:
    """No file can be larger than 20 kB."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def channels() -> None:
    """Each of CHANNELS, such as `1:full 2:unread`, is a descriptor of the process and its fault."""
    for channel in os.environ["CHANNELS"].split():
        number, fault = int(channel[0]), channel[2:]
        if fault == "full":
            os.dup2(os.open("/dev/full", os.O_WRONLY), number)
        elif fault == "closed":
            os.close(number)
            setattr(sys, {1: "stdout", 2: "stderr"}[number], None)
        else:
            reader, writer = os.openpty() if fault == "terminal" else os.pipe()
            os.dup2(writer, number)
            # A terminal is closed while its progress bar is shown.
            Timer(0.5 if fault == "terminal" else 0.0, os.close, (reader,)).start()
