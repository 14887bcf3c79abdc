"""Time of a training step of each arm of a study, interleaved, in CPU time of one thread.

    python bench/study_step.py PLAN [--arms off,slowness] [--data.train TEXT] [--data.val TEXT] …

PLAN is the name or the file of a plan; settings of a run are flags. The runs of a study are too far apart in time to
compare steps by a few per cent. Here each round takes five steps of every arm. Prints the median of a step, and the
median over the rounds of its ratio to the plan's baseline.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from jepamba.config import with_settings
from jepamba.data import corpus
from jepamba.study.plan import load_plan
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

STEPS = 5
"""Steps of an arm in a round."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("plan")
    parser.add_argument("--arms", default="", help="with commas; empty: all")
    parser.add_argument("--rounds", type=int, default=30)
    given, rest = parser.parse_known_args()
    settings = {name.removeprefix("--"): value for name, value in zip(rest[::2], rest[1::2], strict=True)}
    torch.set_num_threads(1)
    plan, wanted = load_plan(given.plan), given.arms.split(",") if given.arms else None
    trainers: dict[str, Trainer] = {}
    for arm in plan.configurations:
        if wanted is None or arm.name in wanted:
            run = with_settings(plan.run(arm, plan.seeds[0]), {**settings, "train.threads": 1, "train.device": "cpu"})
            text = corpus(run.data)
            trainers[arm.name] = Trainer(TrainState(resolve(run, text), text, choose_device(run.train)))
            for _ in range(STEPS):
                trainers[arm.name].train_step(0.0)
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for number in range(given.rounds):
        for name in list(trainers)[:: 1 if number % 2 else -1]:
            start = time.thread_time()
            for _ in range(STEPS):
                trainers[name].train_step(0.0)
            seconds[name].append((time.thread_time() - start) / STEPS)
    for name, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds[plan.baseline], strict=True))
        print(f"{name:<28}{1e3 * statistics.median(values):8.2f} ms   × {ratio:.4f}")


if __name__ == "__main__":
    main()
