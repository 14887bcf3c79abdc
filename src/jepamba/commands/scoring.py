"""`jepamba eval`."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from typing import Any

from jepamba.commands.common import device
from jepamba.progress import Progress, duration


def evaluate(args: Namespace) -> int:
    """`jepamba eval`: bits per byte of a text under an artifact."""
    from dataclasses import replace

    from jepamba.artifact import load_artifact
    from jepamba.data import load_tokens
    from jepamba.evaluate import score_plain, score_sliding

    artifact = load_artifact(args.artifact, device=device())
    data = replace(artifact.run.data, column=args.column)
    temperature = artifact.temperature if args.temperature is None else args.temperature
    with Progress("reading the text") as report:
        tokens = load_tokens(args.data, artifact.tokenizer, data, args.split, report)
    with Progress("scoring") as report:
        common: dict[str, Any] = {"temperature": temperature, "reset": data.reset, "progress": report}
        if args.sliding:
            score = score_sliding(artifact.model, tokens, data.sequence, stride=args.sliding, **common)
        else:
            score = score_plain(artifact.model, tokens, data.sequence, **common)
    if args.json:
        print(json.dumps(asdict(score)))
    else:
        print(
            f"{score.bpb:.4f} bits per byte  ({score.mode} windows of {data.sequence}, temperature "
            f"{score.temperature:.2f})\n{score.nats_per_token:.4f} nats per token over {score.tokens:,} tokens, "
            f"{score.bytes:,} bytes, in {duration(score.seconds)}"
        )
    return 0
