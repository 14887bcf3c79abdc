"""Feeds every reader mutated files and says how each ended.

    python -m tests.fuzz                                  100,000 inputs for each reader, on all cores
    python -m tests.fuzz --count 1000 --seed 7            fewer
    python -m tests.fuzz --replay --count 0               only those kept in tests/fuzz/corpus
    python -m tests.fuzz --keep                           also keep one for each way to end
    python -m tests.fuzz --out docs/results/fuzz.md       also write the summary as a page
    python -m tests.fuzz --show artifact/7/1234           one input again, and its error

An input is made by its name alone, READER/SEED/NUMBER. Exits with 1 if one ended otherwise than read or refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .readers import READERS
from .worker import Tally, show, work

SHARE = 12_500
"""Inputs of each reader that one process takes."""
STALLED = 1200
"""A process that is on one input at so many looks, 50 ms apart, is ended: a minute in which this one could look."""


def main() -> int:
    """Parse, share out, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=100_000, help="inputs for each reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--readers", default=",".join(READERS))
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes (default: cores)")
    parser.add_argument("--replay", action="store_true")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--show", metavar="NAME")
    parser.add_argument(
        "--range", nargs=3, type=int, help=argparse.SUPPRESS
    )  # start, stop, descriptor: a process of ours
    args = parser.parse_args()
    readers = args.readers.split(",")
    if args.show:
        return show(args.show)
    if args.range:
        start, stop, position = args.range
        work(readers, args.seed, start, stop, args.keep, args.replay, position)
        return 0
    started = time.monotonic()
    share = max(1, min(SHARE, -(-args.count // args.jobs)))
    starts = list(range(0, args.count, share)) or [0]
    ranges = [(first, min(first + share, args.count), args.replay and first == 0) for first in starts]
    tallies = {name: Tally() for name in readers}
    with ThreadPoolExecutor(args.jobs) as pool:
        for found in pool.map(lambda job: _process(args, readers, *job), ranges):
            for name, tally in found.items():
                tallies[name].merge(tally)
    page = summary(tallies, args.seed, time.monotonic() - started, args.jobs)
    print(page)
    if args.out:
        args.out.write_text(page, encoding="utf-8")
    failures = [failure for tally in tallies.values() for failure in tally.failures]
    print("\n".join(failures[:50]), file=sys.stderr)
    return 1 if failures else 0


def _process(args: argparse.Namespace, readers: list[str], start: int, stop: int, replay: bool) -> dict[str, Tally]:
    """What a process made of its share; one that dies or hangs is a failure of the input that it was on."""
    with tempfile.TemporaryFile() as position, tempfile.TemporaryFile("w+") as output:
        words = [sys.executable, "-m", "tests.fuzz", "--seed", str(args.seed), "--readers", ",".join(readers)]
        words += ["--replay"] * replay + ["--keep"] * args.keep
        words += ["--range", str(start), str(stop), str(position.fileno())]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
        process = subprocess.Popen(words, stdout=output, pass_fds=[position.fileno()], env=environment)
        last, looks = b"", 0
        while process.poll() is None:
            time.sleep(0.05)
            at = os.pread(position.fileno(), 200, 0)
            last, looks = at, looks + 1 if at == last else 0
            if looks > STALLED:
                process.kill()
        output.seek(0)
        if process.returncode == 0:
            return {name: Tally.from_json(values) for name, values in json.loads(output.read()).items()}
        where = last.decode().strip() or f"the start of {start} to {stop}"
        dead = Tally()
        dead.failures.append(f"{where}: the process ended with {process.returncode}; its share is not counted")
        return {where.partition("/")[0] if where.partition("/")[0] in readers else readers[0]: dead}


def summary(tallies: dict[str, Tally], seed: int, seconds: float, jobs: int) -> str:
    """The page of results."""
    rows = []
    for name, tally in tallies.items():
        wrong = sum(count for kind, count in tally.kinds.items() if kind not in ("refused", "read"))
        ratio, peak, _ = tally.largest
        rows.append(
            f"| {name} | {tally.kinds.total():,} | {tally.kinds['refused']:,} ({len(tally.whats)} kinds) | "
            f"{tally.kinds['read']:,} | {wrong + (wrong == 0 and len(tally.failures))} | {tally.slowest[0]:.3f} s "
            f"(`{tally.slowest[1]}`) | {ratio:.2f} ({peak / 2**20:.1f} MiB, `{tally.largest[2]}`) |"
        )
    table = "\n".join(rows)
    commonest = "\n\n".join(
        f"**{name}**\n\n" + "\n".join(f"- {count:,} × {what}" for what, count in tally.whats.most_common(12))
        for name, tally in tallies.items()
    )
    today = datetime.datetime.now(datetime.UTC).date()
    return f"""# Hostile files: what the readers did

`make fuzz` (seed {seed}), {today}, {jobs} processes, {seconds / 60:.1f} minutes.

| reader | inputs | refused with one line | read, and valid | anything else | slowest | most memory |
|---|---|---|---|---|---|---|
{table}

"Anything else" would be an exception other than the program's own refusal, an invalid result, a warning, more than 5
seconds of the processor (or a minute without an end), memory over twice that of the undamaged file, a process that
died, code that was run or imported, or a file opened outside the input's folder or for writing. Memory is the process's
peak over what it had before the input, by the same figure of the undamaged file: 2 MiB or what it is, whichever is
more (the allocator's pages), and twice the bytes by which the input is the larger file. An input is made again by its
name: `python -m tests.fuzz --show NAME`.

## The commonest refusals

Numbers, names and what is in brackets are left out.

{commonest}
"""


if __name__ == "__main__":
    sys.exit(main())
