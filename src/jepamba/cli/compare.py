"""`jepamba compare`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from jepamba.cli.common import check_output, columns
from jepamba.cli.parser import Commands, local_path


def add(commands: Commands) -> None:
    """Add `jepamba compare`."""
    parser = commands.add(
        "compare",
        compare,
        "Write an HTML page that compares runs: scores, curves, the settings that differ, and samples.",
        ["jepamba compare runs/mine runs/longer", "jepamba compare runs/*/ -o runs/compare.html"],
    )
    parser.add_argument("runs", type=local_path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument(
        "-o",
        "--out",
        type=local_path,
        default=Path("compare.html"),
        metavar="OUT",
        help="page to write (default: compare.html)",
    )


def compare(args: Namespace) -> int:
    """Run `jepamba compare`: write the page and print the scores."""
    from jepamba.report.compare import compare_runs, score_cells

    check_output(args.out)
    runs = compare_runs(args.runs, args.out)
    if args.json:
        print(json.dumps({"out": str(args.out), "runs": runs}))
        return 0
    kinds, cells, notes = score_cells(runs)
    names = [run["run"] for run in runs]
    print(columns([["BPB", *kinds], *([name, *scores] for name, scores in zip(names, cells, strict=True))]))
    print("\n".join(["", *notes, "", f"page  {args.out}"] if notes else ["", f"page  {args.out}"]))
    return 0
