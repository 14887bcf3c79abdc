"""A rank under torchrun that fails as its argument says: raise, mistake, kill, stop; `phase`: rank 0 works alone."""

from __future__ import annotations

import os
import signal
import sys
import time

import torch

from jepamba.distributed import process_group, reported_failures
from jepamba.errors import UserError

how, seconds = sys.argv[1], float(sys.argv[2])
with process_group() as world, reported_failures(world.world_size):
    world.all_reduce_(torch.ones(1))
    if how == "phase":
        world.on_rank_zero(lambda: time.sleep(seconds))
    elif world.rank == 1:
        if how == "raise":
            raise ValueError("a broken kernel")
        if how == "mistake":
            raise UserError("/data/shard.bin: cannot be read")
        os.kill(os.getpid(), signal.SIGKILL if how == "kill" else signal.SIGSTOP)
    assert world.all_reduce_(torch.ones(1)).item() == 2
    if world.is_rank_zero:
        print("finished")
