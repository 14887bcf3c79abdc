"""`jepamba generate`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from jepamba.cli.common import device
from jepamba.cli.parser import Commands


def add(commands: Commands) -> None:
    """Add `jepamba generate`."""
    parser = commands.add(
        "generate",
        generate,
        "Continue a prompt with an artifact, in constant memory a token.",
        [
            'jepamba generate runs/mine/artifact.jepa --prompt "In the beginning" --tokens 200 --seed 1',
            'jepamba generate runs/mine/artifact.jepa --prompt "The " --temperature 0.8 --top-p 0.95',
        ],
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--prompt", default="", metavar="TEXT", help="what the text begins with")
    parser.add_argument("--tokens", type=int, default=128, metavar="N", help="at most so many tokens (default: 128)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="the same seed, the same text (default: 0)")
    parser.add_argument(
        "--temperature", type=float, default=1.0, metavar="T", help="0: the likeliest token; 1: as learned (default)"
    )
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="draw among the likeliest share P")


def generate(args: Namespace) -> int:
    """`jepamba generate`: continue a prompt; the text appears as it is drawn."""
    from jepamba.artifact import load_artifact
    from jepamba.generate import generate as generate_text

    artifact = load_artifact(args.artifact, device=device())
    pieces = generate_text(
        artifact.model,
        artifact.tokenizer,
        args.prompt,
        args.tokens,
        temperature=args.temperature * artifact.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    if args.json:
        print(json.dumps({"prompt": args.prompt, "text": "".join(pieces), "seed": args.seed}))
        return 0
    print(args.prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
    return 0
