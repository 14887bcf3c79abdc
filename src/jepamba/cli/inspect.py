"""`jepamba inspect`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from jepamba.cli.common import columns
from jepamba.cli.parser import Commands
from jepamba.errors import UserError


def add(commands: Commands) -> None:
    """Add `jepamba inspect`."""
    parser = commands.add(
        "inspect",
        inspect,
        "Show what is in an artifact: parameters, quantizers, bytes, errors, and the cost of one more layer or bit.",
        [
            "jepamba inspect runs/mine/artifact.jepa",
            "jepamba inspect runs/mine --json",
            "jepamba inspect runs/mine/artifact.jepa --checkpoint runs/mine/checkpoints/step-000000400",
        ],
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="an artifact, or the folder of a run")
    parser.add_argument(
        "--checkpoint", type=Path, metavar="DIR", help="unrounded weights to compare with (default: the run's newest)"
    )


def inspect(args: Namespace) -> int:
    """`jepamba inspect`: tensors, quantizers, bytes and errors of an artifact, or of a run and its checkpoint."""
    from jepamba.artifact import inspect as inspect_artifact
    from jepamba.progress import Progress

    artifact, checkpoint = _places(args.artifact, args.checkpoint)
    with Progress("reading the artifact"):
        found = inspect_artifact(artifact, _masters(checkpoint) if checkpoint else None)
    if args.json:
        print(json.dumps({**found, "checkpoint": checkpoint.name if checkpoint else None}))
        return 0
    print(_table(found))
    print(_sentences(found, checkpoint))
    return 0


def _places(given: Path, checkpoint: Path | None) -> tuple[Path, Path | None]:
    """The artifact and the checkpoint to compare it with, if there is one."""
    from jepamba.train.checkpoint import checkpoints
    from jepamba.train.finish import ARTIFACT
    from jepamba.train.loop import CHECKPOINTS

    if checkpoint is not None:
        inside = checkpoints(checkpoint) or checkpoints(checkpoint / CHECKPOINTS)
        checkpoint = inside[-1] if inside else checkpoint
    if not given.is_dir():
        return given, checkpoint
    if not (given / ARTIFACT).exists():
        raise UserError(f"{given}: no {ARTIFACT} here; `jepamba resume {given}` finishes a run that was interrupted")
    found = checkpoints(given / CHECKPOINTS)
    return given / ARTIFACT, checkpoint or (found[-1] if found else None)


def _masters(checkpoint: Path) -> dict[str, Any]:
    from jepamba.train.checkpoint import load_checkpoint

    prefix = "weights/model."
    tensors, _ = load_checkpoint(checkpoint)
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _table(found: dict[str, Any]) -> str:
    measured = any(row["error"] is not None for row in found["tensors"])
    heads = ["tensor", "shape", "quantizer", "bytes", "bits a value", "entropy", "at largest", "clipped"]
    heads += ["error" if measured else "expected error", "one more bit"]
    rows = [
        [
            row["name"],
            "×".join(map(str, row["shape"])),
            row["quantizer"],
            f"{row['bytes_coded']:,.0f}",
            f"{row['bits_coded']:.2f}",
            f"{row['entropy']:.2f}",
            *("–" if row[share] is None else f"{row[share]:.2%}" for share in ("at_largest", "clipped")),
            f"{row['error'] if measured else row['expected_error']:.2%}",
            "" if row["one_more_bit"] is None else f"{row['one_more_bit']:,.0f}",
        ]
        for row in found["tensors"]
    ]
    return columns([heads, *rows])


def _sentences(found: dict[str, Any], checkpoint: Path | None) -> str:
    from jepamba.artifact.inspect import LIMIT_BYTES

    costs = found["costs"]
    lines = [
        "",
        f"{found['parameters']:,} parameters in {found['bytes']:,} bytes ({', '.join(found['codecs'])}); "
        f"temperature {found['temperature']:.2f}; tokenizer: {found['tokenizer']['kind']} of "
        f"{found['tokenizer']['vocab']:,} symbols",
        f"one more layer would take {costs['one_more_layer']:,.0f} bytes, one more bit for every integer "
        f"{costs['one_more_bit']:,.0f}; to {LIMIT_BYTES:,} bytes there are {costs['room']:,.0f}, less the code's",
    ]
    if checkpoint is None:
        lines.append("expected error: step / √12, without what clipping loses; give the run's folder for the true one")
    elif found["masters_are_its_own"]:
        lines.append(f"error: of the stored weights against the unrounded ones in {checkpoint.name}")
    else:
        lines.append(
            f"error: against {checkpoint.name}, which does not round to this artifact: what training changed between "
            "the two is in it"
        )
    return "\n".join(lines)
