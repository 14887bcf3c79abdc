"""Seconds from the start of a process to the end of its first training step, with empty and with filled caches.

    python bench/first_step.py submission-bpe --data.train DIR --data.val DIR --data.tokenizer sp8192.model

Each round starts four processes: with kernels compiled ahead and without, for each first with empty caches of Triton
and Numba (`cold`) and then with those that it filled (`warm`). Prints medians in a table and, last, one JSON line.
Lines of `… at` count from the start of the process, the others are durations. Options of its own: --bench-rounds N
(default 3). Everything else is a config flag; the tokenized text should be cached already (the first round is not
counted if there are several).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial


def seconds_of_process() -> float:
    """Seconds since this process was started (Linux)."""
    with open("/proc/self/stat") as file:
        ticks = int(file.read().rpartition(")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def one_process(preset: str, flags: list[str], ahead: bool) -> dict[str, float]:
    """The times of this process: start, two steps, a validation and a sample. Without `ahead` each kernel is compiled
    at its first launch."""
    found = {"Python runs at, s": seconds_of_process()}
    import torch

    found["torch imported at, s"] = seconds_of_process()
    from jepamba.cli.flags import parse_settings
    from jepamba.config import with_settings
    from jepamba.data import corpus
    from jepamba.evaluate import score_plain
    from jepamba.presets import load_preset
    from jepamba.train import resolve
    from jepamba.train.device import choose_device
    from jepamba.train.dial import resolve_dial, resolve_vocabulary
    from jepamba.train.samples import training_sample
    from jepamba.train.state import TrainState
    from jepamba.train.step import Trainer

    found["jepamba imported at, s"] = seconds_of_process()
    run = with_settings(load_preset(preset), parse_settings(flags))
    device_config = choose_device(run.train)
    torch.zeros(1, device=device_config.device)
    found["device ready at, s"] = seconds_of_process()
    run, _ = resolve_vocabulary(run)
    text = corpus(run.data)
    found["text read at, s"] = seconds_of_process()

    compiling = list[float]()

    class TimedTrainer(Trainer):
        def _compile_kernels(self, budget_fraction: float) -> None:
            self._compiled |= not ahead
            started = time.perf_counter()
            super()._compile_kernels(budget_fraction)
            compiling.append(time.perf_counter() - started)

    run, _ = resolve_dial(resolve(run, text), text)
    found["dial resolved at, s"] = seconds_of_process()
    state = TrainState(run, text, device_config)
    trainer = TimedTrainer(state)
    found["state made at, s"] = seconds_of_process()
    work: dict[str, Callable[[], object]] = {
        "second step, s": partial(trainer.train_step, 0.0),
        "validation, s": partial(
            score_plain,
            state.model,
            text.val,
            run.data.seq_len,
            reset=run.data.reset,
            limit=run.train.val_tokens,
            tokens_per_batch=run.eval.tokens_per_batch,
        ),
        "sample, s": partial(training_sample, state),
    }
    trainer.train_step(0.0)
    _wait()
    found["first step ended at, s"] = seconds_of_process()
    found["of it compiling ahead, s"] = sum(compiling)
    for name, call in work.items():
        started = time.perf_counter()
        call()
        _wait()
        found[name] = time.perf_counter() - started
    return found


def _wait() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure(preset: str, flags: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """The medians of the rounds, by `ahead cold`, `ahead warm`, `off cold` and `off warm`."""
    rows: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        for ahead in ("ahead", "off"):
            with tempfile.TemporaryDirectory() as folder:
                settings = {"TRITON_CACHE_DIR": f"{folder}/triton", "NUMBA_CACHE_DIR": f"{folder}/numba"}
                for cache in ("cold", "warm"):
                    command = [sys.executable, __file__, preset, "--bench-process", ahead, *flags]
                    done = subprocess.run(command, env={**os.environ, **settings}, stdout=subprocess.PIPE, check=True)
                    found = json.loads(done.stdout.splitlines()[-1])
                    print(f"{ahead} {cache}: {json.dumps(found)}", flush=True)
                    rows.setdefault(f"{ahead} {cache}", []).append(found)
    counted = 1 if rounds > 1 else 0
    return {
        name: {key: statistics.median(found[key] for found in each[counted:]) for key in each[0]}
        for name, each in rows.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("preset")
    parser.add_argument("--bench-rounds", type=int, default=3)
    parser.add_argument("--bench-process", choices=["ahead", "off"], help=argparse.SUPPRESS)
    args, flags = parser.parse_known_args()
    if args.bench_process:
        print(json.dumps(one_process(args.preset, flags, args.bench_process == "ahead")))
        return
    result = measure(args.preset, flags, args.bench_rounds)
    print(f"{'':28}" + "".join(f"{name:>12}" for name in result))
    for key in next(iter(result.values())):
        print(f"{key:28}" + "".join(f"{row[key]:12.2f}" for row in result.values()))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
