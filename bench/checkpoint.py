"""What a checkpoint costs the step that it falls on, and the steps during which it is written.

    python bench/checkpoint.py submission-bpe --data.train DIR --data.val DIR --data.tokenizer sp8192.model

Real training steps; every fourth starts a checkpoint, in turn one that is written in a thread, as a run does it, and
one that is written at once. Prints a table and, last, one JSON line. Options of its own: --bench-checkpoints N (of each
kind, default 5) and --bench-folder DIR (where they are written; default: a temporary folder). All else is a config
flag. A step is timed from the end of the one before to the moment when the device has done all its work, and a
checkpoint that starts in it is in its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.data import corpus
from jepamba.presets import load_preset
from jepamba.train import read_and_resolve
from jepamba.train import writer as writer_module
from jepamba.train.checkpoint import checkpoints, save_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from jepamba.train.writer import CheckpointWriter

BETWEEN = 3
"""Steps without a checkpoint between two with one."""


class Bench:
    """Steps of one state, timed, with and without checkpoints."""

    def __init__(self, run: Run, folder: Path) -> None:
        device_config = choose_device(run.train)
        run, _ = read_and_resolve(run, say=print)
        text = corpus(run.data)
        self.state = TrainState(run, text, device_config)
        self.trainer, self.device = Trainer(self.state), device_config.device
        self.folder, self.why = folder, device_config.why
        self.calls: list[float] = []
        self.threads: list[float] = []
        """Processor time of the threads that wrote."""

    def save(self, *arguments: Any) -> Path:
        """`save_checkpoint`, its processor time noted."""
        start = time.thread_time()
        path = save_checkpoint(*arguments)
        self.threads.append(time.thread_time() - start)
        return path

    def step(self, writer: CheckpointWriter | None = None, at_once: bool = False) -> float:
        """Seconds of one step and of the checkpoint that starts after it, if one does."""
        start = time.perf_counter()
        self.trainer.train_step(0.0)
        state, called = self.state, time.perf_counter()
        if at_once:
            save_checkpoint(self.folder, state.counters.step, state.tensors(), state.metadata(), 2)
        elif writer is not None:
            writer.save(state.counters.step, state.tensors(), state.metadata())
            self.calls.append(time.perf_counter() - called)
        if self.device.type == "cuda":
            torch.cuda.current_stream(self.device).synchronize()
        return time.perf_counter() - start

    def run(self, count: int) -> dict[str, object]:
        """Medians and worst cases over `count` checkpoints of each kind."""
        plain, during, at_once = list[float](), list[float](), list[float]()
        writer_module.save_checkpoint = self.save  # type: ignore[assignment, attr-defined]
        with CheckpointWriter(self.folder, 2, self.device) as writer:
            for _ in range(3):
                self.step()
            # As a run does: the first checkpoint finds its memory made.
            start = time.perf_counter()
            writer.prepare(self.state.tensors())
            prepared = time.perf_counter() - start
            first = [self.step(writer)]
            while writer.busy:
                first.append(self.step())
            self._ended(writer)
            self.calls.clear()
            for _ in range(count):
                during.append(self.step(writer))
                # Those that run while the disk is written to, as many as there are.
                while writer.busy:
                    during.append(self.step())
                self._ended(writer)
                plain += [self.step() for _ in range(BETWEEN)]
                at_once.append(self.step(at_once=True))
                plain += [self.step() for _ in range(BETWEEN)]
        size = sum(file.stat().st_size for file in checkpoints(self.folder)[-1].iterdir())
        usual = statistics.median(plain)
        return {
            "device": self.why,
            "checkpoint, MB": size / 1e6,
            "step, ms": usual * 1e3,
            "step, slowest without a checkpoint, ms": max(plain) * 1e3,
            "call that starts a checkpoint, ms": statistics.median(self.calls) * 1e3,
            "the same, % of a step": 100 * statistics.median(self.calls) / usual,
            "processor time of the thread, ms": statistics.median(self.threads) * 1e3,
            "step with a checkpoint or during its writing, ms": statistics.median(during) * 1e3,
            "the slowest of these, ms": max(during) * 1e3,
            "steps during writing": len(during) / count,
            "held up, median, %": 100 * (statistics.median(during) / usual - 1),
            "held up, all of them together, % of one step": 100 * (sum(during) / usual - len(during)) / count,
            "memory for it made, after the first step, in, ms": prepared * 1e3,
            "slowest step with the first checkpoint or during its writing, ms": max(first) * 1e3,
            "written at once instead, ms": statistics.median(at_once) * 1e3,
        }

    def _ended(self, writer: CheckpointWriter) -> None:
        failure = writer.failure(wait=True)
        if failure is not None:
            raise SystemExit(failure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-checkpoints", type=int, default=5)
    parser.add_argument("--bench-folder", type=Path)
    args, flags = parser.parse_known_args()
    run = with_settings(load_preset(args.preset), parse_settings(flags))
    with tempfile.TemporaryDirectory(dir=args.bench_folder) as folder:
        result = Bench(run, Path(folder)).run(args.bench_checkpoints)
    for name, value in result.items():
        print(f"{name:66} {value:12.2f}" if isinstance(value, float) else f"{name:66} {value}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
