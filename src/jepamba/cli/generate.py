"""`jepamba generate`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.cli.common import add_artifact
from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba generate`."""
    parser = commands.add(
        "generate",
        generate,
        "Continue a prompt with an artifact, in constant memory.",
        [
            'jepamba generate runs/mine/artifact.jepa --prompt "In the beginning" --tokens 200 --seed 1',
            'jepamba generate runs/mine/artifact.jepa --prompt "The " --temperature 0.8 --top-p 0.95',
        ],
    )
    add_artifact(parser)
    parser.add_argument("--prompt", default="", metavar="TEXT", help="start of the text")
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
    from jepamba.api import load

    pieces = load(args.artifact).stream(
        args.prompt, args.tokens, temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed
    )
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": "".join(pieces), "seed": args.seed}))
        return 0
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
