"""`jepamba study`."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from jepamba.cli.common import columns
from jepamba.cli.flags import add_settings, settings_from_args
from jepamba.cli.parser import Commands, local_path
from jepamba.errors import UserError


def add(commands: Commands) -> None:
    """Add `jepamba study`."""
    group = commands.group("study", "Compare configurations over paired seeds.", ["jepamba study run quick-jepa"])
    run = group.add(
        "run",
        study_run,
        "Run every configuration of a plan with every seed; skip finished runs and resume interrupted ones.",
        [
            "jepamba study run quick-jepa",
            "jepamba study run published-n-layer --data.train train.txt.xz --data.val val.txt.xz --train.steps 400",
            "jepamba study run mine.toml --out runs/mine",
            "jepamba study run jepa-bpe-60 --data.train shards --gpus 2 --overlap 8 --seeds 5 --stop-after 540",
        ],
    )
    run.add_argument("plan", metavar="PLAN", help="a .toml file or the name of a shipped plan (`jepamba study plans`)")
    run.add_argument("--out", type=local_path, metavar="DIR", help="folder of the study (default: runs/PLAN)")
    run.add_argument("--gpus", type=int, default=1, metavar="N", help="GPUs to use, each for one run at a time")
    run.add_argument(
        "--overlap",
        type=int,
        default=1,
        metavar="N",
        help="processes for each GPU: one trains or scores while the others start, pack or wait (default: 1)",
    )
    run.add_argument(
        "--seeds", type=int, default=0, metavar="N", help="run the first N seeds of the plan only (default: all)"
    )
    run.add_argument(
        "--only", default="", metavar="NAMES", help="run these configurations only, separated by commas (default: all)"
    )
    run.add_argument(
        "--stop-after",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="start no run that would not end by then, and stop the others with a checkpoint (default: no limit)",
    )
    add_settings(run)
    report = group.add(
        "report",
        study_report,
        "Report the differences to the baseline with confidence intervals.",
        ["jepamba study report runs/quick-jepa"],
    )
    report.add_argument("dir", type=local_path, metavar="DIR", help="folder of the study")
    group.add("plans", study_plans, "List the shipped plans.", ["jepamba study plans"])


def study_run(args: Namespace) -> int:
    """Run `jepamba study run` and print the report. Returns 1 if a run failed."""
    from jepamba.study.plan import load_plan
    from jepamba.study.report import report_study
    from jepamba.study.run import run_plan

    if min(args.gpus, args.overlap) < 1 or args.seeds < 0 or not 0 <= args.stop_after < float("inf"):
        raise UserError("--gpus and --overlap must be 1 or more, --seeds and --stop-after 0 (all, no limit) or more")
    if args.gpus > 1:
        import torch

        if torch.cuda.device_count() < args.gpus:
            raise UserError(f"--gpus {args.gpus}: there are {torch.cuda.device_count()} GPUs here; give at most that")
    plan = load_plan(args.plan).with_common(settings_from_args(args))
    if args.seeds:
        plan = plan.first_seeds(args.seeds)
    out = args.out or Path("runs") / plan.name
    args.on_interrupt = "stopped; the same command continues this study"
    only = [name for name in args.only.split(",") if name]
    outcomes = run_plan(plan, out, gpus=args.gpus, overlap=args.overlap, stop_after=args.stop_after, only=only)
    text = report_study(out)
    args.results_in = out
    print(json.dumps({"out": str(out), "runs": [asdict(o) for o in outcomes]}) if args.json else text)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def study_report(args: Namespace) -> int:
    """Run `jepamba study report`: write the report files and print the report."""
    from jepamba.study.report import as_json, report_study
    from jepamba.study.results import read_study

    text = report_study(args.dir)
    print(json.dumps(as_json(read_study(args.dir))) if args.json else text)
    return 0


def study_plans(args: Namespace) -> int:
    """Run `jepamba study plans`: list the plans in the package."""
    from jepamba.study.plan import load_plan, plan_names

    questions = {name: load_plan(name).question for name in plan_names()}
    print(json.dumps(questions) if args.json else columns([[name, text] for name, text in questions.items()]))
    return 0
