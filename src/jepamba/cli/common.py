"""Functions that several commands use."""

from __future__ import annotations

import gc
import os
import sys
from argparse import Action, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepamba.cli.parser import Parser
from jepamba.cli.streams import STDIN, read_stdin_text
from jepamba.errors import UserError
from jepamba.hub_names import HUB
from jepamba.io import check_writable

if TYPE_CHECKING:
    from jepamba.artifact import Artifact
    from jepamba.data import Tokens
    from jepamba.text_model import TextModel


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Format `rows` as a text table with two spaces between columns.

    The first row holds the headings. Columns of numbers are aligned right, with their heading; others are aligned left.
    """
    layout = []
    for index, column in enumerate(zip(*rows, strict=True)):
        is_numeric = all(cell[:1].isdigit() or cell in ("", "–") for cell in column[1:]) and any(column[1:])
        layout.append((max(map(len, column)), str.rjust if index and is_numeric else str.ljust))
    lines = ("  ".join(align(cell, width) for cell, (width, align) in zip(row, layout, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


LOCATED = "an artifact, the folder of a run, or hf://owner/name"
"""What `jepamba.artifact.locate` takes."""
LOADED = "an artifact, the folder of a run, a checkpoint, or hf://owner/name"
"""What `jepamba.load` takes."""


def add_artifact(parser: Parser, name: str = "artifact", **more: Any) -> Action:
    """Add an argument that names a model. It is text, since a `Path` would change `hf://`."""
    return parser.add_argument(name, metavar="ARTIFACT", **more)


def add_optional_artifact(parser: Parser, name: str = "artifact", takes: str = LOCATED) -> None:
    """Add the argument that `artifact_or_shipped` reads: a flag, or the last positional argument but optional ones."""
    more = {} if name.startswith("-") else {"nargs": "?"}
    add_artifact(parser, name, help=f"{takes} (default: the model in the package)", **more)


def add_artifact_and(parser: Parser, name: str, takes: str, help: str) -> None:
    """Add the arguments ARTIFACT and `name`, which `artifact_and` reads. ARTIFACT can be left out."""
    metavar = name.upper()
    # Not `nargs="?"`: in `ARTIFACT --flag NAME`, argparse would end the positional arguments before the flag.
    add_artifact(
        parser, help=f"{takes} (default, if {metavar} alone is given: the model in the package)"
    ).required = False
    parser.add_argument(name, metavar=metavar, help=help).required = False


def artifact_and(args: Namespace, name: str) -> tuple[str | Path, str]:
    """Return ARTIFACT and `name`. A single word is `name`, unless it names a model: then `UserError` asks for both."""
    first, second = args.artifact, getattr(args, name)
    if second is not None:
        return first, second
    if first is None:
        raise UserError(f"{name.upper()} is missing (see `{args.prog} --help`)")
    if os.path.exists(first) or first.startswith(HUB) or first.endswith(".jepa"):
        raise UserError(f"{first}: this is ARTIFACT, and {name.upper()} is missing after it (see `{args.prog} --help`)")
    return artifact_or_shipped(None), first


def artifact_or_shipped(name: str | None) -> str | Path:
    """Return `name`; without one, say on standard error that it is the model in the package, and return its path."""
    from jepamba.artifact.locate import SHIPPED
    from jepamba.progress import print_line

    if name is not None:
        return name
    print_line(
        "jepamba: no ARTIFACT given: the small model in the package (`jepamba inspect` shows it and its sources)"
    )
    return SHIPPED


def load_model(name: str | None) -> TextModel:
    """Load the model of `artifact_or_shipped(name)`.

    Imports and loading create objects that stay. A search for garbage among them would take a fifth of a second.
    """
    gc.disable()
    try:
        from jepamba.api import load

        return load(artifact_or_shipped(name))
    finally:
        # Together, these two move all objects to the oldest generation without a search.
        gc.freeze()
        gc.unfreeze()
        gc.enable()


def add_text_flags(parser: Parser, purpose: str) -> None:
    """Add the flags that name the text and its split; `purpose` says what the text is for."""
    parser.add_argument(
        "--data",
        required=True,
        metavar="PATH",
        help="text, folder, JSONL, parquet or shards; -: text from standard input",
    )
    parser.add_argument("--column", default="text", metavar="C", help="column of JSONL and parquet (default: text)")
    parser.add_argument(
        "--skip-bad", type=int, default=0, metavar="N", help="bad rows that may be left out (default: 0)"
    )
    parser.add_argument(
        "--split",
        default="val",
        metavar="S",
        help=f"split to {purpose} of shards, or of files whose names tell splits apart (default: val)",
    )


def read_text(args: Namespace, artifact: Artifact) -> Tokens:
    """Read the text that `add_text_flags` names, with the tokenizer of `artifact`, and say what is left out of it.

    Documents of `-` are not cached.
    """
    from jepamba.data import load_tokens
    from jepamba.data.build import inventory
    from jepamba.data.tokens import tokens_in_memory
    from jepamba.progress import Progress
    from jepamba.text.inventory import table

    if args.data == STDIN:
        return tokens_in_memory(filter(None, read_stdin_text("the text").split("\0")), artifact.tokenizer)
    data = replace(artifact.run.data, column=args.column, skip_bad=args.skip_bad)
    files = inventory(args.data, args.split, data)
    with Progress("reading the text") as report:
        if files.left_out:
            report.say(table({"text": files}))
        tokens = load_tokens(args.data, artifact.tokenizer, data, args.split, report)
        if tokens.bad_rows:
            report.say(f"jepamba: bad rows left out: {tokens.bad_rows:,}")
    return tokens


def summary_printer(out: Path) -> Callable[[str], None]:
    """Return a function that prints to standard output, or to standard error if `out` is standard output itself."""
    try:
        is_stdout = os.path.samestat(out.stat(), os.fstat(1))
    except OSError:
        is_stdout = False
    return partial(print, file=sys.stderr if is_stdout else sys.stdout)


def check_output(out: Path, *inputs: Path) -> None:
    """Raise `UserError` if `out` cannot be written, or is one of `inputs`."""
    check_writable(out)
    if out.exists() and any(path.exists() and out.samefile(path) for path in inputs):
        raise UserError(f"{out}: this output is also an input; choose another -o")
