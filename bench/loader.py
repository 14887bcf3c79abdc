"""Whether the loader keeps up with a GPU: its own speed, and how long a step waits for its batch.

    python bench/loader.py [--sparse-gb 100] [--rate 1.5e6] [--seq-len 1024] [--micro 65536] [--steps 40] [--pin]

The shards are sparse files: any apparent size, hardly any disk. The loader alone makes batches as fast as it can; then
a step of `--micro` tokens is simulated that takes micro / rate seconds. Measured are the time that it waits for
`Prefetcher.next`, and the CPU time of the batches meanwhile. Memory is the peak of the resident set before the shards
are opened and after. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from jepamba.data import Loader, Prefetcher, Tokens, open_shard
from jepamba.data.shards import HEADER_BYTES, SHARD_TOKENS, Shard, write_shard
from jepamba.text import ByteTokenizer

WARM_UP = 4


def sparse_shards(folder: Path, gigabytes: float) -> Tokens:
    """Shards of `gigabytes` in all: 100 M tokens each, of which the first 1 M are there, the rest are holes."""
    rng = np.random.default_rng(0)
    left = int(gigabytes * 1e9) // 2
    shards = list[Shard]()
    while left > 0:
        count = min(left, SHARD_TOKENS)
        file = folder / f"sparse_train_{len(shards):06d}.bin"
        write_shard(file, rng.integers(256, size=min(count, 1_000_000)))
        with file.open("r+b") as stream:
            stream.seek(8)
            stream.write(count.to_bytes(4, "little"))
            stream.truncate(HEADER_BYTES + 2 * count)
        shards.append(open_shard(file, 256))
        left -= count
    return Tokens(shards, ByteTokenizer())


def peak_mb() -> float:
    """The largest resident set of this process until now, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Parse, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sparse-gb", type=float, default=2.0)
    parser.add_argument("--rate", type=float, default=1.5e6, help="tokens a second of the simulated GPU")
    parser.add_argument("--seq-len", type=int, default=1024)
    parser.add_argument("--micro", type=int, default=65536, help="tokens of a batch")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--pin", action="store_true", help="into pinned memory; needs CUDA")
    args = parser.parse_args()
    count, seconds = args.micro // args.seq_len, args.micro / args.rate
    before = peak_mb()
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        tokens = sparse_shards(Path(folder), args.sparse_gb)
        loader = Loader(tokens, args.seq_len, 0)
        opened = time.perf_counter() - start
        times = []
        for _ in range(WARM_UP + args.steps):
            start = time.perf_counter()
            loader.next(count)
            times.append(time.perf_counter() - start)
        alone = statistics.median(times[WARM_UP:])
        ahead = Prefetcher(loader, pin=args.pin)
        for _ in range(WARM_UP):
            ahead.next(count)
        waits, cpu = [], time.process_time()
        for _ in range(args.steps):
            time.sleep(seconds)
            start = time.perf_counter()
            ahead.next(count)
            waits.append(time.perf_counter() - start)
        cpu = (time.process_time() - cpu) / args.steps
    figures = {
        "apparent GB": args.sparse_gb,
        "windows of an epoch": loader.windows,
        "seconds to make and open the shards": opened,
        "tokens/s of the loader alone": args.micro / alone,
        "seconds of a step": seconds,
        "seconds that a step waits, median": statistics.median(waits),
        "seconds that a step waits, worst": max(waits),
        "share of the step, %": 100 * statistics.mean(waits) / seconds,
        "CPU seconds a batch": cpu,
        "peak memory before, MB": before,
        "peak memory after, MB": peak_mb(),
    }
    for what, figure in figures.items():
        print(f"{what:38} {figure:16,.6g}")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
