"""`jepamba resume`."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace

from jepamba.cli.flags import settings_from_args
from jepamba.cli.parser import Commands, local_path
from jepamba.cli.train import print_summary, resume_hint
from jepamba.config import BUDGET_SETTINGS, MACHINE_SETTINGS


def add(commands: Commands) -> None:
    """Add `jepamba resume`."""
    parser = commands.add(
        "resume",
        resume,
        "Continue a run from its newest checkpoint, optionally with a new budget.",
        [
            "jepamba resume runs/mine",
            "jepamba resume runs/mine --train.steps 2000",
            "jepamba resume runs/mine --data.train moved/text --data.val moved/val.txt --data.cache cache",
            "torchrun --standalone --nproc-per-node 2 -m jepamba resume runs/mine --train.threads 4",
        ],
    )
    parser.add_argument("dir", type=local_path, metavar="DIR", help="folder of the run")
    parser.set_defaults(
        settings_error="a run keeps its settings; `jepamba resume` only accepts "
        f"{', '.join(f'--{name}' for name in (*MACHINE_SETTINGS, *BUDGET_SETTINGS))}"
    )
    local = parser.add_argument_group("files and threads of this machine", argument_default=SUPPRESS)
    local.add_argument("--data.train", metavar="PATH", help="where the same training text is now")
    local.add_argument("--data.val", metavar="PATH", help="where the same validation text is now")
    local.add_argument("--data.tokenizer", metavar="T", help="where the same tokenizer is now")
    local.add_argument("--data.cache", metavar="DIR", help="folder for tokenized shards")
    local.add_argument("--train.init_from", metavar="ARTIFACT", help="where the same initial weights are now")
    local.add_argument("--train.threads", type=int, metavar="N", help="CPU threads of this process")
    budget = parser.add_argument_group("new budget, in place of the run's", argument_default=SUPPRESS)
    budget.add_argument("--train.steps", type=int, metavar="N", help="optimizer steps")
    budget.add_argument("--train.seconds", type=float, metavar="X", help="seconds of training")
    budget.add_argument("--train.tokens", type=int, metavar="N", help="target tokens")


def resume(args: Namespace) -> int:
    """Run `jepamba resume` and print the scores."""
    from jepamba.train import resume as resume_run

    with resume_hint(args, args.dir):
        summary = resume_run(args.dir, settings_from_args(args))
    return print_summary(args, args.dir, summary)
