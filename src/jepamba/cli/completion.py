"""`jepamba completion`."""

from __future__ import annotations

import argparse
import json

from jepamba.cli.parser import Commands

_FILES = {"ARTIFACT", "DIR", "FILE", "OUT", "PATH", "--data.train", "--data.val", "--train.init_from"}
"""Placeholders and flags of values that are files."""


def add(commands: Commands) -> None:
    """Add `jepamba completion`."""
    parser = commands.add(
        "completion",
        completion,
        "Print a script that lets the Tab key complete commands, flags, presets and files.",
        [
            "jepamba completion bash > ~/.local/share/bash-completion/completions/jepamba",
            "jepamba completion zsh > ~/.zfunc/_jepamba",
        ],
    )
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell that runs the script")


def completion(args: argparse.Namespace) -> int:
    """Run `jepamba completion` and print the script."""
    import shtab

    from jepamba.cli import build_parser

    # A parser of its own: the values that are added to it are suggestions, and others are valid too.
    parser, _ = build_parser()
    _add_values(parser)
    script = shtab.complete(parser, args.shell)
    print(json.dumps({"shell": args.shell, "script": script}) if args.json else script)
    return 0


def _add_values(parser: argparse.ArgumentParser) -> None:
    """Say, in the form that shtab reads, which values the arguments of `parser` and of its commands have."""
    import shtab

    from jepamba.presets import preset_names
    from jepamba.study.plan import plan_names

    for action in parser._actions:
        metavar = str(action.metavar)
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _add_values(command)
        elif metavar == "PRESET":
            action.choices = preset_names()
        elif metavar == "PLAN":
            action.choices = plan_names()
        elif metavar == "yes|no":
            action.choices = ["yes", "no"]
        elif metavar.startswith("{"):
            action.choices = metavar.strip("{}").split(",")
        elif _FILES.intersection([metavar, *action.option_strings]):
            action.complete = shtab.FILE  # type: ignore[attr-defined]
