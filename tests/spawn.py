"""Real processes that train together, started quickly: forked from a server that has imported everything once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from jepamba.distributed import World, process_group
from processes import forking, free_port

SECONDS = 120.0
"""How long a group may take."""


def together(size: int, work: Callable[..., Any], *arguments: Any) -> list[Any]:
    """`work(world, *arguments)` in `size` processes, with the environment that torchrun gives; the results by rank.

    An exception is a result, as its text. `work` must be a function of a module.
    """
    context = forking()
    port = free_port()
    pipes, processes = [], []
    for rank in range(size):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, rank, size, port, work, arguments))
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    results = []
    try:
        for rank, pipe in enumerate(pipes):
            assert pipe.poll(SECONDS), f"rank {rank} of {size} gave nothing within {SECONDS:.0f} s"
            results.append(pipe.recv())
    finally:
        for process in processes:
            process.join(5)
            process.kill()
    return results


def _run(pipe: Connection, rank: int, size: int, port: int, work: Callable[..., Any], arguments: tuple[Any]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    torch.set_num_threads(1)
    try:
        if size == 1:
            result = work(World(), *arguments)
        else:
            with process_group() as world:
                result = work(world, *arguments)
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    pipe.send(result)
