"""`jepamba eval`."""

from __future__ import annotations

import json
import os
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from jepamba.cli.common import LOADED, add_optional_artifact, add_text_flags, load_model, read_text
from jepamba.cli.parser import Commands
from jepamba.errors import UserError

if TYPE_CHECKING:
    from jepamba.evaluate import Score


_FIGURES = ("bpb", "bpb_decoded", "nats_per_token")


def add(commands: Commands) -> None:
    """Add `jepamba eval`."""
    parser = commands.add(
        "eval",
        evaluate,
        "Score text with an artifact in bits per byte.",
        [
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt",
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt --carry",
            "jepamba eval runs/mine/artifact.jepa --data shards/ --sliding 16 --json",
            "jepamba eval runs/mine/artifact.jepa --data held-out.txt --adapt",
            "cat held-out.txt | jepamba eval hf://owner/name --data -",
        ],
    )
    add_optional_artifact(parser, takes=LOADED)
    add_text_flags(parser, "score")
    parser.add_argument("--sliding", type=int, default=0, metavar="STRIDE", help="use sliding windows with this stride")
    parser.add_argument("--carry", action="store_true", help="carry the state through the text: one pass")
    parser.add_argument(
        "--adapt", action="store_true", help="carry the state, and train on each chunk of text after its score"
    )
    parser.add_argument("--adapt-lr", type=float, metavar="LR", help="learning rate of --adapt (default: 5e-5)")
    parser.add_argument(
        "--no-reset", action="store_true", help="keep the state at document starts (default: as in training)"
    )
    parser.add_argument(
        "--temperature", type=float, metavar="T", help="divide the logits by T (default: the artifact's)"
    )


def evaluate(args: Namespace) -> int:
    """Run `jepamba eval` and print the score."""
    from jepamba.evaluate import ADAPT_LR, score_adapted, score_carried, score_plain, score_sliding
    from jepamba.evaluate.score import check_stride, check_temperature
    from jepamba.progress import Progress

    modes = [flag for flag in ("carry", "sliding", "adapt") if getattr(args, flag)]
    if len(modes) > 1:
        raise UserError(f"--{modes[0]} and --{modes[1]} exclude each other; choose one")
    if args.adapt_lr is not None and not args.adapt:
        raise UserError("--adapt-lr has no effect without --adapt")
    processes = os.environ.get("WORLD_SIZE", "1")
    if args.adapt and processes != "1":
        raise UserError(
            f"--adapt runs in one process, and WORLD_SIZE = {processes} in the environment: start it without torchrun"
        )
    artifact = load_model(args.artifact).artifact
    data = artifact.run.data
    temperature = artifact.temperature if args.temperature is None else args.temperature
    # Before the text is read, which may take long.
    check_temperature(temperature)
    if args.sliding:
        check_stride(args.sliding, data.seq_len)
    tokens = read_text(args, artifact)
    with Progress("scoring") as report:
        reset = data.reset and not args.no_reset
        common: dict[str, Any] = {"temperature": temperature, "reset": reset, "progress": report}
        if args.sliding:
            score = score_sliding(artifact.model, tokens, data.seq_len, stride=args.sliding, **common)
        elif args.adapt:
            lr = ADAPT_LR if args.adapt_lr is None else args.adapt_lr
            score = score_adapted(artifact.model, tokens, lr=lr, **common)
        elif args.carry:
            score = score_carried(artifact.model, tokens, data.seq_len, **common)
        else:
            score = score_plain(artifact.model, tokens, data.seq_len, **common)
    if args.json:
        # An adapted figure has a name of its own, so that no reader takes it for one of the artifact.
        suffix = "_adapted" if args.adapt else ""
        print(json.dumps({name + suffix * (name in _FIGURES): value for name, value in asdict(score).items()}))
    else:
        print(_format_score(score, data.seq_len, tokens.loss))
    return 0


def _format_score(score: Score, seq_len: int, lost: str) -> str:
    """Format a score in a few lines; every figure has its unit. `lost` says what the tokenizer cannot restore."""
    from jepamba.progress import duration
    from jepamba.text.unrestored import bpb_unit

    method = "state carried" if score.mode == "carried" else f"{score.mode} windows of {seq_len}"
    adapted = ""
    if score.mode.startswith("adapted-"):
        method, adapted = f"{score.mode}: state carried, weights trained on the text after its score", "adapted "
    if not score.reset:
        method += ", not reset at document starts"
    unit = bpb_unit(score.counted).replace("BPB", "bits per byte")
    lines = [f"{score.bpb:.4f} {adapted}{unit}  ({method}, temperature {score.temperature:.2f})"]
    if lost:
        lines.append(f"not of the whole text: {lost}")
    if score.bytes != score.decoded_bytes:
        lines.append(
            f"{score.bpb_decoded:.4f} {adapted}bits per byte of the text that the tokenizer decodes: "
            f"{score.decoded_bytes:,} bytes instead of {score.bytes:,}"
        )
    lines.append(
        f"{score.nats_per_token:.4f} {adapted}nats per token over {score.tokens:,} tokens, {score.bytes:,} bytes, "
        f"in {duration(score.seconds)}"
    )
    return "\n".join(lines)
