"""`jepamba generate`."""

from __future__ import annotations

import json
from argparse import Namespace

from jepamba.commands.common import device


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
