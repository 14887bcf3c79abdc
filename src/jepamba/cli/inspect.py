"""`jepamba inspect`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

from jepamba.cli.common import add_optional_artifact, artifact_or_shipped, columns
from jepamba.cli.parser import Commands, local_path
from jepamba.errors import UserError
from jepamba.io import check_utf8_name


def add(commands: Commands) -> None:
    """Add `jepamba inspect`."""
    parser = commands.add(
        "inspect",
        inspect,
        "Show the tensors of an artifact: formats, bytes, rounding errors, and the cost of one more layer or bit.",
        [
            "jepamba inspect runs/mine/artifact.jepa",
            "jepamba inspect runs/mine --json",
            "jepamba inspect runs/mine/artifact.jepa --checkpoint runs/mine/checkpoints/step-000000400",
        ],
    )
    add_optional_artifact(parser)
    parser.add_argument(
        "--checkpoint", type=local_path, metavar="DIR", help="unrounded weights to compare (default: the run's newest)"
    )


def inspect(args: Namespace) -> int:
    """Run `jepamba inspect` and print one row per tensor and a summary."""
    from jepamba.artifact import inspect as inspect_artifact
    from jepamba.artifact.locate import SHIPPED, SOURCES
    from jepamba.progress import Progress

    artifact, checkpoint = _resolve_paths(artifact_or_shipped(args.artifact), args.checkpoint)
    with Progress("reading the artifact"):
        masters = None
        if checkpoint is not None:
            check_utf8_name(checkpoint)
        try:
            masters = _master_weights(checkpoint) if checkpoint else None
        except UserError as error:
            if args.checkpoint is not None:
                raise
            # That of a run's folder is an addition.
            checkpoint = None
            print(f"jepamba: {error}; the errors are the expected ones", file=sys.stderr)
        found = inspect_artifact(artifact, masters)
    if args.json:
        print(json.dumps({**found, "checkpoint": checkpoint.name if checkpoint else None}))
        return 0
    print(_table(found))
    print(_summary(found, checkpoint))
    if artifact == SHIPPED:
        print(f"{found['extra']['text']} ({SOURCES})")
    return 0


def _resolve_paths(artifact: str | Path, checkpoint: Path | None) -> tuple[Path, Path | None]:
    """Return the artifact and the checkpoint to compare it with, or None without one."""
    from jepamba.artifact.locate import locate
    from jepamba.train.checkpoint import checkpoints
    from jepamba.train.loop import CHECKPOINTS

    if checkpoint is not None:
        available = checkpoints(checkpoint) or checkpoints(checkpoint / CHECKPOINTS)
        checkpoint = available[-1] if available else checkpoint
    if checkpoint is None and Path(artifact).is_dir():
        checkpoint = next(reversed(checkpoints(Path(artifact) / CHECKPOINTS)), None)
    return locate(artifact), checkpoint


def _master_weights(checkpoint: Path) -> dict[str, Any]:
    from jepamba.train.checkpoint import load_checkpoint

    prefix = "weights/model."
    tensors, _ = load_checkpoint(checkpoint)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _table(found: dict[str, Any]) -> str:
    has_error = any(row["error"] is not None for row in found["tensors"])
    heads = ["tensor", "shape", "quantizer", "bytes", "bits per value", "entropy", "at largest"]
    heads += ["error" if has_error else "expected error", "one more bit"]
    rows = [
        [
            row["name"],
            "×".join(map(str, row["shape"])),
            row["quantizer"],
            f"{row['bytes_coded']:,.0f}",
            f"{row['bits_coded']:.2f}",
            f"{row['entropy']:.2f}",
            "–" if row["at_largest"] is None else f"{row['at_largest']:.2%}",
            f"{row['error'] if has_error else row['expected_error']:.2%}",
            "" if row["one_more_bit"] is None else f"{row['one_more_bit']:,.0f}",
        ]
        for row in found["tensors"]
    ]
    return columns([heads, *rows])


def _summary(found: dict[str, Any], checkpoint: Path | None) -> str:
    from jepamba.artifact.inspect import LIMIT_BYTES

    costs = found["costs"]
    lines = [
        "",
        f"{found['parameters']:,} parameters in {found['bytes']:,} bytes ({', '.join(found['codecs'])}); "
        f"temperature {found['temperature']:.2f}; tokenizer: {found['tokenizer']['kind']}, "
        f"{found['tokenizer']['vocab']:,} tokens",
        f"one more layer would cost {costs['one_more_layer']:,.0f} bytes, one more bit per integer "
        f"{costs['one_more_bit']:,.0f}; {costs['remaining_bytes']:,.0f} of {LIMIT_BYTES:,} bytes are left without code",
    ]
    if checkpoint is None:
        lines.append("expected error: step / √12; give the folder of the run for the measured error")
    elif found["masters_are_its_own"]:
        lines.append(f"error: stored weights against the unrounded weights in {checkpoint.name}")
    else:
        lines.append(
            f"error: against {checkpoint.name}, which does not round to this artifact; the error includes the training "
            "between the two"
        )
    return "\n".join(lines)
