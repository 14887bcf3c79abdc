"""`jepamba demo`."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepamba.cli.common import columns, free_folder
from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba demo`."""
    parser = commands.add(
        "demo",
        demo,
        "Train a small model on the English inside Python, pack it, and compare it with compressors.",
        ["jepamba demo", "jepamba demo --seconds 30 --out runs/first", "jepamba demo --json"],
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder of the run (default: runs/demo)")
    parser.add_argument("--seconds", type=float, metavar="N", help="training time (default: that of the preset quick)")


def demo(args: Namespace) -> int:
    """Run the demo and print its table."""
    from jepamba.demo import run_demo

    out = args.out or free_folder(Path("runs/demo"))
    args.on_interrupt = f"stopped; `jepamba resume {out}` continues the training"
    result = run_demo(out, args.seconds)
    print(json.dumps(result) if args.json else demo_table(result))
    return 0


def demo_table(result: Mapping[str, Any]) -> str:
    """What `run_demo` found, as a page for a terminal."""
    model, baselines = result["model"], result["baselines"]
    rows = [["", "BPB", "BPB, training text as history"]]
    rows += [[f"jepamba, an artifact of {model['artifact_bytes']:,} bytes", f"{model['bpb']:.3f}", ""]]
    rows += [[row["compressor"], f"{row['bpb']:.3f}", f"{row['bpb_with_history']:.3f}"] for row in baselines]
    best = min(baselines, key=lambda row: row["bpb"])
    return (
        f"\nBits per byte (BPB) of {model['bytes']:,} bytes of text that the model has never seen; less is better:\n\n"
        f"{columns(rows)}\n\n"
        f"The model needs {model['bpb']:.2f} bits for each byte, {best['compressor']} alone {best['bpb']:.2f}. "
        "The last column gives the compressors as history what the model was trained on.\n\n"
        f"A sample: {result['sample']}\n\n"
        f"Curves and settings: {Path(result['out']) / 'report.html'}"
    )
