"""`jepamba generate`."""

from __future__ import annotations

import json
import os
import re
import sys
from argparse import Namespace
from collections.abc import Iterable
from typing import TYPE_CHECKING

from jepamba.cli.common import LOADED, add_optional_artifact, load_model
from jepamba.cli.parser import Commands
from jepamba.cli.streams import STDIN, read_stdin_text, stdin_is_piped
from jepamba.errors import UserError

if TYPE_CHECKING:
    from jepamba.text_model import TextModel


def add(commands: Commands) -> None:
    """Add `jepamba generate`."""
    parser = commands.add(
        "generate",
        generate,
        "Continue a prompt with an artifact, in constant memory; without a prompt, interactively.",
        [
            'jepamba generate "Once upon a time"',
            'jepamba generate runs/mine --prompt "In the beginning" --tokens 200 --seed 1',
            'jepamba generate runs/mine --prompt "The " --temperature 0.8 --top-p 0.95',
            "jepamba generate runs/mine < start.txt",
            "jepamba generate runs/mine",
        ],
    )
    add_optional_artifact(parser, takes=LOADED)
    parser.add_argument("text", nargs="?", metavar="TEXT", help="same as --prompt")
    parser.add_argument(
        "--prompt",
        metavar="TEXT",
        help="start of the text; -: standard input (default: ask for prompts on a terminal, else standard input)",
    )
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="maximum number of tokens (default: 128)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="seed of the sampling (default: 0)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0: most likely token; 1: the artifact's (default)"
    )
    parser.add_argument(
        "--top-k", type=int, default=0, metavar="K", help="keep the K most likely tokens (default: all)"
    )
    parser.add_argument(
        "--top-p", type=float, default=1.0, metavar="P", help="keep the top probability mass P (default: 1)"
    )


def generate(args: Namespace) -> int:
    """Run `jepamba generate` and print each piece of text as it is sampled."""
    from jepamba.progress import print_line

    artifact, prompt = _artifact_and_prompt(args)
    if prompt is not None and prompt == args.artifact and re.fullmatch(r"[^\s-]\S*", prompt):
        print_line(f"jepamba: {prompt!r} is no file or folder: it is taken as the prompt")
    model = load_model(artifact)
    on_terminal = sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty()
    if prompt is None and on_terminal and not args.json:
        return _ask_for_prompts(model, args)
    if prompt is None and stdin_is_piped():
        print_line("jepamba: no prompt given: reading it from standard input")
        prompt = STDIN
    prompt = prompt or ""
    if prompt == STDIN:
        # A shell's `echo` ends its text with a line break that is not meant.
        prompt = read_stdin_text("the prompt").removesuffix("\n")
    pieces = _sample(model, prompt, args.seed, args)
    if args.json:
        print(json.dumps({"prompt": prompt, "text": "".join(pieces), "seed": args.seed}))
    else:
        _print_text(prompt, pieces)
    return 0


def _artifact_and_prompt(args: Namespace) -> tuple[str | None, str | None]:
    """Return ARTIFACT and the prompt. A single word that names nothing and does not look like a path is the prompt."""
    artifact, text = args.artifact, args.text
    is_path = artifact is None or os.path.exists(artifact) or re.fullmatch(r"\S*(/|\.jepa)\S*", artifact)
    if text is None and not is_path:
        if args.prompt is not None:
            raise UserError(f"{artifact!r}: no such artifact or run, and --prompt is the prompt; leave one out")
        artifact, text = None, artifact
    if text is not None and args.prompt is not None:
        raise UserError(f"--prompt and {text!r} are both a prompt; give one")
    return artifact, args.prompt if text is None else text


def _ask_for_prompts(model: TextModel, args: Namespace) -> int:
    """Read prompts from the terminal and continue each, with the next seed, until the end of the input."""
    import readline  # noqa: F401  # `input` then has a history

    print(f"Type the start of a text. Ctrl-C stops a text, Ctrl-D ends. First seed: {args.seed}.", file=sys.stderr)
    seed = args.seed
    while True:
        try:
            prompt = input("> ")
            seed += 1
            _print_text(prompt, _sample(model, prompt, seed - 1, args))
        except KeyboardInterrupt:
            print()
        except EOFError:
            print()
            return 0


def _sample(model: TextModel, prompt: str, seed: int, args: Namespace) -> Iterable[str]:
    return model.stream(
        prompt, args.tokens, seed=seed, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p
    )


def _print_text(prompt: str, pieces: Iterable[str]) -> None:
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
