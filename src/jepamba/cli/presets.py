"""`jepamba presets`."""

from __future__ import annotations

import json
from argparse import Namespace
from itertools import takewhile

from jepamba.cli.common import columns
from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba presets`."""
    parser = commands.add(
        "presets",
        presets,
        "List the presets and overlays, or print one as TOML.",
        ["jepamba presets", "jepamba presets cpu > mine.toml"],
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="preset to print, with +overlays")


def presets(args: Namespace) -> int:
    """Run `jepamba presets`: print a list, or one preset as TOML."""
    from importlib import resources

    from jepamba.presets import dump_toml, load_preset, preset_names

    texts = {
        name: (resources.files("jepamba.presets") / f"{name}.toml").read_text(encoding="utf-8")
        for name in preset_names()
    }
    if args.name:
        # A preset with overlays, or a file, is merged and printed with every setting.
        text = texts[args.name] if args.name in texts else dump_toml(load_preset(args.name))
        print(json.dumps({"name": args.name, "toml": text}) if args.json else text.rstrip())
        return 0
    purposes = {name: _first_sentence(text) for name, text in texts.items()}
    print(json.dumps(purposes) if args.json else columns([[name, purpose] for name, purpose in purposes.items()]))
    return 0


def _first_sentence(toml: str) -> str:
    """Return the first sentence of the comment at the top of a preset."""
    comment = takewhile(lambda line: line.startswith("#"), toml.splitlines())
    return " ".join(line.removeprefix("#").strip() for line in comment).partition(". ")[0].rstrip(".") + "."
