"""`jepamba watch`."""

from __future__ import annotations

import json
import sys
import time
from argparse import Namespace

from jepamba.cli.parser import Commands, local_path


def add(commands: Commands) -> None:
    """Add `jepamba watch`."""
    parser = commands.add(
        "watch",
        watch,
        "Draw the curves of a run in the terminal, live until it finishes.",
        ["jepamba watch runs/mine", "jepamba watch runs/mine --once", "jepamba watch runs/mine --json"],
    )
    parser.add_argument("dir", type=local_path, metavar="DIR", help="folder of the run")
    parser.add_argument("--once", action="store_true", help="draw once and stop")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between updates (default: 2)")


def watch(args: Namespace) -> int:
    """Run `jepamba watch`: draw the curves of a run until it finishes."""
    from rich.console import Console
    from rich.live import Live

    from jepamba.errors import UserError
    from jepamba.report.watch import RunView, RunWatcher

    if args.every <= 0:
        raise UserError(f"--every {args.every:g}: must be above 0 seconds")
    watcher = RunWatcher(args.dir)
    status = watcher.poll()
    if args.json:
        print(json.dumps(status.as_json()))
        return 0
    console = Console()
    if args.once or status.finished or not sys.stdout.isatty():
        console.print(RunView(status))
        return 0
    # Ctrl-C is the way to leave the view, so it is not an error.
    try:
        with Live(RunView(status), console=console, auto_refresh=False) as live:
            draw_seconds = 0.0
            while not status.finished:
                # Drawing a long run is slow. Use at most a tenth of a core, so that training keeps the rest.
                time.sleep(max(args.every, 9 * draw_seconds))
                start = time.perf_counter()
                status = watcher.poll()
                live.update(RunView(status), refresh=True)
                draw_seconds = time.perf_counter() - start
    except KeyboardInterrupt:
        pass
    return 0
