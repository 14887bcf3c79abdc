"""Time of a training step of each arm of a study, interleaved: CPU time of one thread, or elapsed time on a GPU.

    python bench/study_step.py docs/results/jepa/quick-jepa-slowness/plan.toml [--arms slowness] [--data.train TEXT] …

PLAN is the name or the file of a plan; settings of a run are flags. For a preset with a dial give the plan.toml of
finished runs, which has its choices. The runs of a study are too far apart in time to compare steps by a few per cent.
Here each round takes five steps of every arm. Prints the median of a step, and the median over the rounds of its ratio
to the plan's baseline; these do not contain the measurements for `jepa.balance`, which are in one round of ten.
`--profile` adds, on a GPU, the time of a step's kernels, their number, and the longest of them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from jepamba.cli.flags import parse_settings
from jepamba.config import with_settings
from jepamba.data import corpus
from jepamba.study.plan import load_plan
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

STEPS = 5
"""Steps of an arm in a round."""


def profile(trainer: Trainer) -> None:
    """Print the time and the number of the GPU kernels of a step, and the longest by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as found:
        for _ in range(STEPS):
            trainer.train_step(0.0)
        torch.cuda.synchronize()
    rows = [row for row in found.key_averages() if row.self_device_time_total > 0]
    total, count = sum(row.self_device_time_total for row in rows), sum(row.count for row in rows)
    print(f"    kernels: {total / STEPS / 1e3:.2f} ms, {count / STEPS:.0f}")
    for row in sorted(rows, key=lambda row: -row.self_device_time_total)[:30]:
        print(f"    {row.self_device_time_total / STEPS / 1e3:8.3f} ms {row.count / STEPS:7.1f}  {row.key[:100]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plan")
    parser.add_argument("--arms", default="", help="with commas, besides the baseline; empty: all")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--profile", action="store_true")
    given, rest = parser.parse_known_args()
    settings, plan, on_gpu = parse_settings(rest), load_plan(given.plan), torch.cuda.is_available()
    if not on_gpu:
        torch.set_num_threads(1)
        settings = {**settings, "train.threads": 1, "train.device": "cpu"}
    names = [arm.name for arm in plan.configurations]
    wanted = [plan.baseline, *given.arms.split(",")] if given.arms else names
    if unknown := set(wanted) - set(names):
        parser.error(f"{plan.name} has no {', '.join(unknown)}; it has {', '.join(names)}")

    def clock() -> float:
        if not on_gpu:
            return time.thread_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    trainers: dict[str, Trainer] = {}
    for arm in plan.configurations:
        if arm.name in wanted:
            run = with_settings(plan.run(arm, plan.seeds[0]), settings)
            text = corpus(run.data)
            trainers[arm.name] = Trainer(TrainState(resolve(run, text), text, choose_device(run.train)))
            for _ in range(STEPS):
                trainers[arm.name].train_step(0.0)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(given.rounds):
        for name in list(trainers)[:: 1 if number % 2 else -1]:
            start = clock()
            for _ in range(STEPS):
                trainers[name].train_step(0.0)
            seconds[name].append((clock() - start) / STEPS)
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[plan.baseline], strict=True))
        print(f"{name:<28}{1e3 * statistics.median(values):8.2f} ms   × {ratio:.4f}", flush=True)
        if given.profile and on_gpu:
            profile(trainers[name])


if __name__ == "__main__":
    main()
