"""`jepamba study`."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from jepamba.cli.common import columns
from jepamba.cli.flags import add_settings, settings_of
from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba study`."""
    below = commands.group("study", "Compare configurations over seeds, in pairs.", ["jepamba study run quick-jepa"])
    run = below.add(
        "run",
        study_run,
        "Run a plan: every configuration with every seed; what is finished is skipped, what was interrupted resumes.",
        [
            "jepamba study run quick-jepa",
            "jepamba study run published-n_layer --data.train train.txt.xz --data.val val.txt.xz --train.steps 400",
            "jepamba study run mine.toml --out runs/mine",
        ],
    )
    run.add_argument("plan", metavar="PLAN", help="a .toml file, or a shipped plan (`jepamba study plans`)")
    run.add_argument("--out", type=Path, metavar="DIR", help="folder of the study (default: runs/PLAN)")
    add_settings(run)
    report = below.add(
        "report",
        study_report,
        "Differences to the baseline with confidence intervals, as a table, pictures and JSON.",
        ["jepamba study report runs/quick-jepa"],
    )
    report.add_argument("dir", type=Path, metavar="DIR")
    below.add("plans", study_plans, "List the shipped plans.", ["jepamba study plans"])


def study_run(args: Namespace) -> int:
    """`jepamba study run`: every configuration and seed of a plan, what is finished left alone."""
    from jepamba.study.plan import load_plan
    from jepamba.study.report import report_study
    from jepamba.study.run import run_plan

    plan = load_plan(args.plan).with_common(settings_of(args))
    out = args.out or Path("runs") / plan.name
    args.on_interrupt = "stopped; the same command continues this study"
    outcomes = run_plan(plan, out)
    text = report_study(out)
    print(json.dumps({"out": str(out), "runs": [asdict(o) for o in outcomes]}) if args.json else text)
    return 1 if any(outcome.state == "failed" for outcome in outcomes) else 0


def study_report(args: Namespace) -> int:
    """`jepamba study report`: paired differences of the runs in a folder."""
    from jepamba.study.report import as_json, read_study, report_study

    text = report_study(args.dir)
    print(json.dumps(as_json(read_study(args.dir))) if args.json else text)
    return 0


def study_plans(args: Namespace) -> int:
    """`jepamba study plans`: the plans that come with the package."""
    from jepamba.study.plan import load_plan, plan_names

    questions = {name: load_plan(name).question for name in plan_names()}
    print(json.dumps(questions) if args.json else columns([[name, text] for name, text in questions.items()]))
    return 0
