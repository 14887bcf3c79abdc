"""`jepamba watch`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba watch`."""
    parser = commands.add(
        "watch",
        watch,
        "Draw the curves of a run in the terminal, and again as it goes on.",
        ["jepamba watch runs/mine", "jepamba watch runs/mine --once", "jepamba watch runs/mine --json"],
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the run")
    parser.add_argument("--once", action="store_true", help="draw once and stop")
    parser.add_argument(
        "--every", type=float, default=2.0, metavar="S", help="seconds between two pictures (default: 2)"
    )


def watch(args: Namespace) -> int:
    """`jepamba watch`: a run's curves in the terminal, drawn anew as it goes on, until it is finished."""
    from rich.console import Console
    from rich.live import Live

    from jepamba.errors import UserError
    from jepamba.report.watch import Picture, Watch

    if args.every <= 0:
        raise UserError(f"--every {args.every}: give a number of seconds above 0")
    run = Watch(args.dir)
    watched = run.look()
    if args.json:
        print(json.dumps(watched.as_json()))
        return 0
    console = Console()
    if args.once or watched.finished or not sys.stdout.isatty():
        console.print(Picture(watched))
        return 0
    # Leaving is how one stops looking, not an interruption of anything.
    try:
        with Live(Picture(watched), console=console, auto_refresh=False) as live:
            spent = 0.0
            while not watched.finished:
                # A long run takes long to draw: watching it has a tenth of a core at most, training has the rest.
                time.sleep(max(args.every, 9 * spent))
                start = time.perf_counter()
                watched = run.look()
                live.update(Picture(watched), refresh=True)
                spent = time.perf_counter() - start
    except KeyboardInterrupt:
        pass
    return 0
