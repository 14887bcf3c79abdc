"""`jepamba latents`."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

from jepamba.cli.common import (
    add_optional_artifact,
    add_text_flags,
    artifact_or_shipped,
    check_output,
    columns,
    read_text,
    summary_printer,
)
from jepamba.cli.parser import Commands, local_path

_LIMIT = 65536


def add(commands: Commands) -> None:
    """Add `jepamba latents`."""
    parser = commands.add(
        "latents",
        latents,
        "Write the latents of a text by position to a safetensors file.",
        [
            "jepamba latents runs/mine/artifact.jepa --data held-out.txt -o latents.safetensors",
            "jepamba latents runs/mine/artifact.jepa --data held-out.txt --carry --measure -o latents.safetensors",
            "jepamba latents runs/mine --data shards/ --latent z --limit 0 -o latents.safetensors",
            "jepamba latents runs/mine --data shards/ --limit 400000 --carry --probe --json -o latents.safetensors",
        ],
    )
    add_optional_artifact(parser)
    add_text_flags(parser, "read")
    parser.add_argument("-o", "--out", type=local_path, required=True, metavar="OUT", help="file to write")
    parser.add_argument(
        "--latent",
        choices=("h", "z"),
        default="h",
        help="h: what the head predicts from (default); z: the projector's output, from heads.safetensors "
        "(train.keep_heads) beside the artifact",
    )
    parser.add_argument(
        "--carry", action="store_true", help="carry the state through the text (default: windows, as in training)"
    )
    parser.add_argument(
        "--no-reset", action="store_true", help="keep the state at document starts (default: as in training)"
    )
    parser.add_argument(
        "--limit", type=int, default=_LIMIT, metavar="N", help=f"maximum number of tokens (default: {_LIMIT}; 0: all)"
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16", "bfloat16"),
        default="float32",
        help="type of the latents in the file (default: float32)",
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="print norm, effective rank and variances; with --json the spectrum too",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="print what linear probes find in the latents beyond the next token, and how fast latents change",
    )


def latents(args: Namespace) -> int:
    """Run `jepamba latents`: write the file and print its size, and what `--measure` and `--probe` ask for."""
    import torch

    from jepamba.api import load
    from jepamba.artifact.heads import HEADS
    from jepamba.artifact.locate import locate
    from jepamba.evaluate import compute_latents, measure_latents, probe_latents, probe_rows, save_latents
    from jepamba.io import sha256_of
    from jepamba.progress import Progress

    path = locate(artifact_or_shipped(args.artifact))
    check_output(args.out, path, path.parent / HEADS, Path(args.data))
    loaded = load(path)
    artifact = loaded.artifact
    sha256 = sha256_of(path, "the artifact")
    heads = loaded.heads if args.latent == "z" else None
    data = artifact.run.data
    reset = data.reset and not args.no_reset
    tokens = read_text(args, artifact)
    with Progress("computing latents") as report:
        found = compute_latents(
            artifact.model,
            tokens,
            data.seq_len,
            heads=heads,
            carry=args.carry,
            reset=reset,
            limit=args.limit,
            dtype=getattr(torch, args.dtype),
            progress=report,
        )
    metadata = {
        "latent": args.latent,
        "mode": "carried" if args.carry else "plain",
        "seq_len": str(data.seq_len),
        "reset": json.dumps(reset),
        "artifact_sha256": sha256,
        "tokenizer_fingerprint": artifact.tokenizer.fingerprint,
    }
    print_summary = summary_printer(args.out)
    size = save_latents(args.out, found, metadata)
    measures = measure_latents(found.latents, data.seq_len) if args.measure else {}
    probes = probe_latents(found, artifact.tokenizer, 0 if args.carry else data.seq_len) if args.probe else {}
    if args.json:
        shape = dict(zip(("tokens", "d_model"), found.latents.shape, strict=True))
        print_summary(
            json.dumps(
                {**metadata, "seq_len": data.seq_len, "reset": reset, **shape, "bytes": size, **measures, **probes}
            )
        )
        return 0
    method = "state carried" if args.carry else f"plain windows of {data.seq_len}"
    if not reset:
        method += ", not reset at document starts"
    print_summary(
        f"latents {args.latent} of {len(found.tokens):,} tokens of {len(tokens):,} ({method}): {args.dtype}, "
        f"{size:,} bytes"
    )
    if measures:
        print_summary(
            f"norm {measures['norm']:.3f}, {100 * measures['mean_share']:.1f} % of its square the mean latent's, "
            f"effective rank {measures['effective_rank']:.1f} of {measures['width']}, "
            f"{100 * measures['within_sequence']:.1f} % of the variance within windows, "
            f"{100 * measures['spectrum'][0]:.1f} % along the first principal axis"
        )
    if probes:
        cosines = ", ".join(f"{value:.2f} after {lag}" for lag, value in probes["cosine"].items())
        print_summary(f"cosine of centred latents: {cosines} tokens\n{columns(probe_rows(probes))}")
    return 0
