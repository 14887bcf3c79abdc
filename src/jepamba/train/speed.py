"""The training speed of a configuration on this machine."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time

import torch

from jepamba.config import Run
from jepamba.data import Corpus
from jepamba.distributed import World
from jepamba.progress import Progress
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer

STEPS = {"cuda": (3, 12), "cpu": (1, 3)}
"""Steps before and steps during the measurement, by device. The first steps on a GPU compile and capture graphs."""


def measure_speed(run: Run, text: Corpus, world: World) -> float:
    """Take a few training steps of `run` and discard them. All ranks must call it.

    Returns: this rank's clock's tokens per second of all ranks × parameters. The time of a step is the median.
    """
    chosen, seconds = choose_device(run.train), list[float]()
    warm_up, timed = STEPS[chosen.device.type]
    with Progress("measuring the speed") as report:
        trainer = Trainer(TrainState(run, text, chosen, world))
        for step in range(warm_up + timed):
            started = time.perf_counter()
            with contextlib.suppress(NotFiniteError):
                trainer.train_step(0.0)
            seconds.append(time.perf_counter() - started)
            report(step + 1, warm_up + timed)
        parameters = sum(p.numel() for p in trainer.state.model.parameters())
        trainer.release()
    del trainer
    # The trainer and its graphs refer to each other.
    gc.collect()
    if chosen.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(chosen.device)
    return run.train.tokens_per_step * parameters / statistics.median(seconds[warm_up:])
