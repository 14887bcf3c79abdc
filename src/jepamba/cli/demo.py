"""`jepamba demo`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from jepamba.cli.common import columns
from jepamba.cli.parser import Commands, local_path
from jepamba.cli.train import resume_hint


def add(commands: Commands) -> None:
    """Add `jepamba demo`."""
    parser = commands.add(
        "demo",
        demo,
        "Train a small model on the English text in Python's library, pack it, and compare it with compressors.",
        ["jepamba demo", "jepamba demo --seconds 30 --out runs/first", "jepamba demo --json"],
    )
    parser.add_argument("--out", type=local_path, metavar="DIR", help="folder of the run (default: runs/demo)")
    parser.add_argument("--seconds", type=float, metavar="N", help="training time in seconds (default: the preset's)")


def demo(args: Namespace) -> int:
    """Run `jepamba demo` and print its results."""
    from jepamba.demo import run_demo
    from jepamba.folder_lock import unused_folder

    with nullcontext(args.out) if args.out else unused_folder(Path("runs/demo")) as out, resume_hint(args, out):
        result = run_demo(out, args.seconds)
    args.results_in = out
    print(json.dumps(result) if args.json else demo_table(result))
    return 0


def demo_table(result: Mapping[str, Any]) -> str:
    """Format the result of `run_demo` for a terminal."""
    from jepamba.text.near_duplicates import overlap_in_words

    model, baselines = result["model"], result["baselines"]
    rows = [["", "BPB", "BPB, training text as history"]]
    rows += [[f"jepamba ({model['artifact_bytes']:,} bytes artifact)", f"{model['bpb']:.3f}", ""]]
    rows += [[row["compressor"], f"{row['bpb']:.3f}", f"{row['bpb_with_history']:.3f}"] for row in baselines]
    best = min(baselines, key=lambda row: row["bpb"])
    overlap = overlap_in_words(result["overlap"])
    return (
        f"\nBits per byte (BPB) of {model['bytes']:,} bytes of held-out text; lower is better:\n\n"
        f"{columns(rows)}\n\n"
        f"The model needs {model['bpb']:.2f} bits per byte; {best['compressor']} alone needs {best['bpb']:.2f}. "
        "In the last column the compressors have the model's training text as history. Of the held-out bytes, "
        f"{overlap}.\n\n"
        f"Sample: {result['sample']}\n\n"
        f"Sample of the larger model in the package: {result['shipped_sample']}\n\n"
        f"Report: {Path(result['out']) / 'report.html'}"
    )
