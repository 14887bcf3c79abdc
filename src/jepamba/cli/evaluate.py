"""`jepamba eval`."""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jepamba.cli.common import device
from jepamba.cli.parser import Commands
from jepamba.errors import UserError

if TYPE_CHECKING:
    from jepamba.evaluate import Score


def add(commands: Commands) -> None:
    """Add `jepamba eval`."""
    parser = commands.add(
        "eval",
        evaluate,
        "Score text with an artifact, in bits per byte.",
        [
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt",
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt --carry",
            "jepamba eval runs/mine/artifact.jepa --data shards/ --sliding 16 --json",
        ],
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT")
    parser.add_argument("--data", required=True, metavar="PATH", help="text, a folder, JSONL, parquet or shards")
    parser.add_argument("--column", default="text", metavar="C", help="column of JSONL and parquet (default: text)")
    parser.add_argument("--split", default="val", metavar="S", help="split of a folder of shards (default: val)")
    parser.add_argument("--sliding", type=int, default=0, metavar="STRIDE", help="sliding windows with this stride")
    parser.add_argument("--carry", action="store_true", help="carry the state: one pass, each token read once")
    parser.add_argument(
        "--no-reset", action="store_true", help="do not forget the state where a document starts (default: as trained)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="divide the logits by T (default: the artifact's own)"
    )


def evaluate(args: Namespace) -> int:
    """`jepamba eval`: bits per byte of a text under an artifact."""
    from dataclasses import replace

    from jepamba.artifact import load_artifact
    from jepamba.data import load_tokens
    from jepamba.evaluate import score_carried, score_plain, score_sliding
    from jepamba.progress import Progress

    if args.carry and args.sliding:
        raise UserError("--carry and --sliding: the state is either carried or built anew in each window; choose one")
    artifact = load_artifact(args.artifact, device=device())
    data = replace(artifact.run.data, column=args.column)
    temperature = artifact.temperature if args.temperature is None else args.temperature
    with Progress("reading the text") as report:
        tokens = load_tokens(args.data, artifact.tokenizer, data, args.split, report)
    with Progress("scoring") as report:
        reset = data.reset and not args.no_reset
        common: dict[str, Any] = {"temperature": temperature, "reset": reset, "progress": report}
        if args.sliding:
            score = score_sliding(artifact.model, tokens, data.seq_len, stride=args.sliding, **common)
        elif args.carry:
            score = score_carried(artifact.model, tokens, data.seq_len, **common)
        else:
            score = score_plain(artifact.model, tokens, data.seq_len, **common)
    print(json.dumps(asdict(score)) if args.json else _described(score, data.seq_len))
    return 0


def _described(score: Score, seq_len: int) -> str:
    """The score in a few lines, every figure with its unit."""
    from jepamba.progress import duration

    how = "state carried" if score.mode == "carried" else f"{score.mode} windows of {seq_len}"
    if not score.reset:
        how += ", not reset at documents"
    lines = [f"{score.bpb:.4f} bits per byte  ({how}, temperature {score.temperature:.2f})"]
    if score.bytes != score.decoded_bytes:
        lines.append(
            f"{score.bpb_decoded:.4f} bits per byte of the text that the tokenizer gives back: {score.decoded_bytes:,} "
            f"bytes of {score.bytes:,}"
        )
    lines.append(
        f"{score.nats_per_token:.4f} nats per token over {score.tokens:,} tokens, {score.bytes:,} bytes, in "
        f"{duration(score.seconds)}"
    )
    return "\n".join(lines)
