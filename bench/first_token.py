"""Seconds from the start of `jepamba generate` to its first token, beside `import torch`, in one run.

    python bench/first_token.py [ARTIFACT…] [--rounds 5]      # default: the model in the package

Each figure is the median of the rounds, which alternate: wall time and CPU time of a new process until the first text
after the prompt is on its standard output. The first round, which fills caches, is not counted.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from jepamba.artifact.locate import SHIPPED

PROMPT = "Once"
TICK = os.sysconf("SC_CLK_TCK")


def seconds_to_first_token(artifact: str) -> tuple[float, float]:
    """Wall time and CPU time of a process that continues a prompt with `artifact`."""
    command = ["generate", artifact, "--prompt", PROMPT, "--tokens", "64"]
    return _measure(["-m", "jepamba", *command], len(PROMPT) + 1)


def seconds_of_import() -> tuple[float, float]:
    """Wall time and CPU time of a process that imports PyTorch."""
    return _measure(["-c", "import torch; print('x', flush=True)"], 1)


def _measure(arguments: list[str], characters: int) -> tuple[float, float]:
    started = time.perf_counter()
    with subprocess.Popen([sys.executable, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.read(characters)
        wall = time.perf_counter() - started
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        process.kill()
    return wall, (int(fields[11]) + int(fields[12])) / TICK


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifacts", nargs="*", default=[str(SHIPPED)])
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {"import torch": [], **{name: [] for name in args.artifacts}}
    for _ in range(args.rounds + 1):
        for name, times in found.items():
            times.append(seconds_of_import() if name == "import torch" else seconds_to_first_token(name))
    medians = {
        name: [statistics.median(times) for times in zip(*rounds[1:], strict=True)] for name, rounds in found.items()
    }
    for name, (wall, cpu) in medians.items():
        more_wall, more_cpu = (value - base for value, base in zip((wall, cpu), medians["import torch"], strict=True))
        print(f"{wall:.2f} s, CPU {cpu:.2f} s; more than import torch: {more_wall:.2f} s, CPU {more_cpu:.2f} s  {name}")


if __name__ == "__main__":
    main()
