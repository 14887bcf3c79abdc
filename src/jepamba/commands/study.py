"""`jepamba study`."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from jepamba.commands.common import columns


def study_run(args: Namespace) -> int:
    """`jepamba study run`: every configuration and seed of a plan, what is finished left alone."""
    from jepamba.flags import parse_settings
    from jepamba.presets import load_preset
    from jepamba.study.plan import load_plan
    from jepamba.study.report import report_study
    from jepamba.study.run import run_plan

    plan = load_plan(args.plan)
    if args.flags:
        plan = plan.with_common(parse_settings(load_preset(plan.preset), args.flags))
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
