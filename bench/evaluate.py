"""Plain, carried and sliding evaluation of one artifact on one text: bits per byte and time, side by side.

    python bench/evaluate.py runs/mine/artifact.jepa --data val.txt --tokens 200000 --sliding-tokens 16384

Runs on the GPU where there is one. Every mode is run once untimed on a short part, then `--rounds` times, in turn;
times are medians, of elapsed time on a GPU, of processor time on a CPU, which other programs disturb less. Plain and
carried scores are of the first `--tokens` targets. Sliding windows cost many times as much, so
that they are run on the first `--sliding-tokens` targets alone: times are compared by the target, and bits per byte on
that part, which the other two are scored on as well. `--seq-len` changes the length of the windows (default: as
trained). Prints a table and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from jepamba.artifact import load_artifact
from jepamba.data import load_tokens
from jepamba.evaluate import Score, score_carried, score_plain, score_sliding

Mode = Callable[[int], Score]
"""An evaluation of the first so many targets."""


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """A row for each mode of scoring."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    artifact = load_artifact(args.artifact, device=device)
    data = artifact.run.data
    tokens = load_tokens(args.data, artifact.tokenizer, data, "val")
    seq_len = args.seq_len or data.seq_len
    whole = min(args.tokens or len(tokens) - 1, len(tokens) - 1)
    part = min(args.sliding_tokens or whole, whole)
    common = {"temperature": artifact.temperature, "tokens_per_batch": args.tokens_per_batch}

    def mode(score: Callable[..., Score], **settings: Any) -> Mode:
        return lambda limit: score(artifact.model, tokens, seq_len, limit=limit, **(common | settings))

    strides = [int(stride) for stride in args.strides.split(",")]
    modes: dict[str, tuple[Mode, int]] = {
        "plain": (mode(score_plain, reset=data.reset), whole),
        "carried": (mode(score_carried, reset=data.reset), whole),
    }
    if data.reset:
        modes["carried, not reset at documents"] = (mode(score_carried, reset=False), whole)
    modes |= {f"sliding, stride {s}": (mode(score_sliding, reset=data.reset, stride=s), part) for s in strides}
    on_part = {name: score(part) for name, (score, _) in modes.items()}
    clock = time.perf_counter if device == "cuda" else time.process_time
    found: dict[str, Score] = {}
    times: dict[str, list[float]] = {name: [] for name in modes}
    for _ in range(args.rounds):
        for name, (score, limit) in modes.items():
            started = clock()
            found[name] = score(limit)
            times[name].append(clock() - started)
    rows: dict[str, dict[str, float]] = {}
    for name, run in found.items():
        seconds = statistics.median(times[name])
        rows[name] = {
            "targets": run.tokens,
            "bpb": run.bpb,
            "bpb_decoded": run.bpb_decoded,
            "bpb_on_part": on_part[name].bpb,
            "seconds": seconds,
            "fastest": min(times[name]),
            "slowest": max(times[name]),
            "us_per_target": 1e6 * seconds / run.tokens,
        }
    plain = rows["plain"]["us_per_target"]
    for row in rows.values():
        row["times_plain"] = row["us_per_target"] / plain
    where = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return {
        "device": where,
        "torch": torch.__version__,
        "windows": seq_len,
        "trained_on_windows": data.seq_len,
        "tokens_per_batch": args.tokens_per_batch,
        "part": part,
        "rounds": args.rounds,
        "modes": rows,
    }


def options() -> argparse.ArgumentParser:
    """The command-line options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--tokens", type=int, default=0, help="targets of plain and carried (0: all)")
    parser.add_argument("--sliding-tokens", type=int, default=16384, help="targets of sliding (0: as many)")
    parser.add_argument("--strides", default="16", help="strides, separated by commas")
    parser.add_argument("--seq-len", type=int, default=0, help="length of the windows (0: as trained)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens-per-batch", type=int, default=0, help="of a forward pass (0: by the device)")
    return parser


def main() -> None:
    result = measure(options().parse_args())
    print(
        f"{result['device']}; torch {result['torch']}; windows of {result['windows']}, trained on "
        f"{result['trained_on_windows']}; medians of {result['rounds']}\n"
    )
    print(
        f"| evaluation | targets | BPB | by decoded bytes | BPB, first {result['part']:,} | s | µs a target | × plain |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name, row in result["modes"].items():
        print(
            f"| {name} | {row['targets']:,} | {row['bpb']:.4f} | {row['bpb_decoded']:.4f} | {row['bpb_on_part']:.4f} "
            f"| {row['seconds']:.1f} | {row['us_per_target']:.1f} | {row['times_plain']:.2f} |"
        )
    print(f"\n{json.dumps(result)}")


if __name__ == "__main__":
    main()
