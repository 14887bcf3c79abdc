"""Twenty kills at random moments, on one process and on two: what was lost, seen twice or skipped, as a page.

    python tests/faults.py [--kills 20] [--seed 0] > docs/results/faults.md

Each life of a run is killed with SIGKILL at a moment that a generator chose, alone or all its processes at once; the
run is resumed and killed again. What every process saw is written down by the process itself, as hashes of the windows'
tokens, and compared with an undisturbed run. Exits with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import torch

from jepamba.train.checkpoint import checkpoints, load_checkpoint
from processes import Running, losses, records, seen
from tiny import preset, text_file, tiny

EVERY = 5
"""Steps between checkpoints."""


@dataclass
class Life:
    """One life of a run: what ended it, and what was there afterwards."""

    killed: str
    seconds: float
    """From the start of its processes to the kill."""
    reached: int
    """The last step in the log."""
    newest: int
    """The step of the newest checkpoint that is whole."""
    writing: bool
    """Whether a checkpoint was being written."""
    ended: float = 0.0
    """Seconds until the ranks that were not killed had ended."""


def lives(run: list[str], out: Path, folder: Path, size: int, steps: int, kills: int, seed: int) -> Iterator[Life]:
    """Start `run`, kill, resume, kill, … and in the end resume and finish. The kills leave a third of the steps."""
    chance, words = random.Random(seed), run
    for life in range(1, kills + 1):
        started, running = time.monotonic(), Running(words, folder, size)
        if size == 1 and chance.random() < 0.25:
            # While it starts, reads, or goes back to its checkpoint. Of several ranks that have not yet found each
            # other it is torchrun that ends the others, and here is none.
            time.sleep(chance.uniform(0.0, 1.0))
        else:
            begun(running, folder, size, life, chance.randint(1, max(1, 2 * steps // (3 * kills))))
            time.sleep(chance.uniform(0.0, 0.1))
        whom = chance.choice([[], *([rank] for rank in range(size))]) if size > 1 else []
        running.signal(signal.SIGKILL, *whom)
        struck = time.monotonic()
        codes = running.wait(60)
        yield Life(
            killed=("all" if not whom else f"rank {whom[0]}") if size > 1 else "the process",
            seconds=struck - started,
            reached=reached(out),
            newest=newest(out),
            writing=any((out / "checkpoints").glob(".building-*")),
            ended=time.monotonic() - struck,
        )
        assert -signal.SIGKILL in codes, f"the run was over before the kill: {codes}; give it more steps"
        if (out / "config.toml").exists():
            words = ["resume", str(out)]
    codes = Running(words, folder, size).wait(600)
    assert codes == [0] * size, codes


def begun(running: Running, folder: Path, size: int, life: int, count: int) -> None:
    """Wait until every rank has begun so many steps in its life of that number."""

    def steps_of(path: Path) -> int:
        lives = path.read_text().split("life") if path.exists() else []
        return lives[life].count("step") if len(lives) > life else 0

    for rank in range(size):
        deadline = time.monotonic() + 60
        while steps_of(folder / f"seen-{rank}.txt") < count:
            assert time.monotonic() < deadline, running.output(rank)
            time.sleep(0.01)


def newest(out: Path) -> int:
    """The step of the newest checkpoint, every one of which must be whole."""
    steps = [load_checkpoint(path)[1]["counters"]["step"] for path in checkpoints(out / "checkpoints")]
    return max(steps, default=0)


def reached(out: Path) -> int:
    """The last step in the log."""
    log = out / "metrics.jsonl"
    return max((record["step"] for record in records(out)), default=0) if log.exists() else 0


def first_steps(path: Path) -> list[int | None]:
    """The first step that each life took; None where it was killed before."""
    firsts: list[int | None] = []
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "life":
            firsts.append(None)
        elif kind == "step" and firsts[-1] is None:
            firsts[-1] = int(rest)
    return firsts


def often(steps: dict[int, list[str]]) -> Counter[str]:
    """How often each window was seen."""
    return Counter(chain(*steps.values()))


def report(size: int, kills: int, steps: int, seed: int, folder: Path) -> bool:
    """Print the section of `size` processes; whether all was well."""
    run = tiny(text_file(folder), train__steps=steps, train__checkpoint_every=EVERY)
    words = ["train", preset(folder, run), "--out"]
    codes = Running([*words, str(folder / "whole")], folder / "as whole", size).wait(600)
    assert codes == [0] * size, codes
    out, beside = folder / "cut", folder / "as cut"
    found = list(lives([*words, str(out)], out, beside, size, steps, kills, seed))
    print(f"\n## {size} process{'es' * (size > 1)}, {steps} steps, a checkpoint every {EVERY}\n")
    columns = ("killed", "after, s", "step reached", "newest checkpoint", "steps to do again", "writing one")
    print(f"| {' | '.join(columns)} | others ended after, s |")
    print("|---|---|---|---|---|---|---|")
    for life in found:
        others = f"{life.ended:.1f}" if life.killed.startswith("rank") else ""
        print(
            f"| {life.killed} | {life.seconds:.2f} | {life.reached} | {life.newest} | {life.reached - life.newest} "
            f"| {'yes' if life.writing else ''} | {others} |"
        )
    truth, ours = seen(folder / "as whole"), seen(beside)
    expected = [1, *(life.newest + 1 for life in found)]
    begun = first_steps(beside / "seen-0.txt")
    pairs = list(zip(losses(out), losses(folder / "whole"), strict=False))
    checks = {
        f"lives, of {len(begun)}, that did not go on right after the newest checkpoint": sum(
            first not in (None, wanted) for first, wanted in zip(begun, expected, strict=True)
        ),
        f"steps, of {steps}, that trained on other windows than in the run without kills, or in another order": sum(
            truth.get(step) != ours.get(step) for step in range(1, steps + 1)
        ),
        "windows seen more often than there": (often(ours) - often(truth)).total(),
        "windows seen less often than there": (often(truth) - often(ours)).total(),
        f"steps, of {steps}, with another loss, gradient norm or any other figure but the clock's": steps
        - sum(a == b for a, b in pairs),
        "artifacts that differ": int(
            (out / "artifact.jepa").read_bytes() != (folder / "whole/artifact.jepa").read_bytes()
        ),
    }
    again = [life.reached - life.newest for life in found]
    print(f"\n{sum(again)} steps were done twice, {max(again)} at most after one kill. In the end:\n")
    for what, count in checks.items():
        print(f"- {what}: {count}")
    sys.stdout.flush()
    return not any(checks.values())


def main() -> int:
    """Both sections; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    print("# Twenty kills at random moments\n" if args.kills == 20 else f"# {args.kills} kills at random moments\n")
    print(
        f"Made by `make faults` (`tests/faults.py`): real processes, SIGKILL, seed {args.seed}; "
        f"{platform.system()} on {os.cpu_count()} CPU cores, torch {torch.__version__}."
    )
    well = True
    for size in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            well &= report(size, args.kills, args.steps, args.seed, Path(folder))
    return 0 if well else 1


if __name__ == "__main__":
    sys.exit(main())
