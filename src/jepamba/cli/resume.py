"""`jepamba resume`."""

from __future__ import annotations

from argparse import SUPPRESS, Namespace
from pathlib import Path

from jepamba.cli.flags import settings_of
from jepamba.cli.parser import Commands
from jepamba.cli.train import how_to_resume, print_summary
from jepamba.config import MACHINE_SETTINGS


def add(commands: Commands) -> None:
    """Add `jepamba resume`."""
    parser = commands.add(
        "resume",
        resume,
        "Continue an interrupted run, exactly where its newest checkpoint left it.",
        [
            "jepamba resume runs/mine",
            "jepamba resume runs/mine --data.train moved/text --data.val moved/val.txt --data.cache cache",
            "torchrun --standalone --nproc-per-node 2 -m jepamba resume runs/mine --train.threads 4",
        ],
    )
    parser.add_argument("dir", type=Path, metavar="DIR", help="folder of the run")
    parser.set_defaults(
        other_settings="a run keeps the settings that it began with; `jepamba resume` takes "
        f"{', '.join(f'--{name}' for name in MACHINE_SETTINGS)} alone"
    )
    here = parser.add_argument_group(
        "where this machine has its files, if not where the run began with them", argument_default=SUPPRESS
    )
    here.add_argument("--data.train", metavar="PATH", help="the training text; the same, or it is refused")
    here.add_argument("--data.val", metavar="PATH", help="the validation text; the same, or it is refused")
    here.add_argument("--data.tokenizer", metavar="T", help="the tokenizer; the same, or it is refused")
    here.add_argument("--data.cache", metavar="DIR", help="folder for tokenized shards")
    here.add_argument("--train.threads", type=int, metavar="N", help="CPU threads of this process")


def resume(args: Namespace) -> int:
    """Continue a run from its newest checkpoint."""
    from jepamba.train import resume as resume_run

    args.on_interrupt = how_to_resume(args.dir)
    return print_summary(args.dir, resume_run(args.dir, settings_of(args)), args.json)
