"""`jepamba compress` and `jepamba decompress`."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path

from jepamba.cli.parser import Commands
from jepamba.errors import UserError


def add(commands: Commands) -> None:
    """Add `jepamba compress`."""
    packing = commands.add(
        "compress",
        compress,
        "Compress any file with an artifact's model, without loss.",
        [
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc",
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc --lanes 1 --json",
        ],
    )
    unpacking = commands.add(
        "decompress",
        decompress,
        "Restore a file that `jepamba compress` wrote, to the byte.",
        ["jepamba decompress notes.jpc --model runs/mine/artifact.jepa -o notes.txt"],
    )
    for command in (packing, unpacking):
        command.add_argument("file", type=Path, metavar="FILE")
        command.add_argument("--model", type=Path, required=True, metavar="ARTIFACT", help="the same for both")
        command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="file to write")
    packing.add_argument(
        "--lanes", type=int, default=0, metavar="N", help="stretches read at once (default: by size); fewer are slower"
    )


def compress(args: Namespace) -> int:
    """`jepamba compress`: a file as small as the model's bits per byte make it."""
    from jepamba.compress import MAX_BYTES, Compressor
    from jepamba.io import atomic_write, read_untrusted
    from jepamba.progress import Progress, duration

    _check_output(args)
    data = read_untrusted(args.file, "the file to compress", MAX_BYTES)
    started = time.monotonic()
    with Progress("compressing") as report:
        found = Compressor.open(args.model).compress(data, args.lanes, report)
    atomic_write(args.out, found.content)
    seconds = time.monotonic() - started
    if args.json:
        result = {
            "bytes": found.original_bytes,
            "compressed_bytes": len(found.content),
            "bpb": found.bpb,
            "model_bpb": found.model_bpb,
            "tokens": found.tokens,
            "lanes": found.lanes,
            "corrections": found.corrections,
            "corrections_bytes": found.corrections_bytes,
            "seconds": seconds,
        }
        print(json.dumps(result))
        return 0
    print(f"{found.original_bytes:,} bytes to {len(found.content):,}: {found.bpb:.4f} bits per byte")
    if found.tokens:
        print(
            f"{found.model_bpb:.4f} by the model's own score of {found.tokens:,} tokens, in {found.lanes} lanes; "
            f"{found.corrections:,} corrections of what its tokenizer loses, in {found.corrections_bytes:,} bytes; "
            f"{duration(seconds)}"
        )
    else:
        print("stored as it is: the model does not make this file smaller")
    return 0


def decompress(args: Namespace) -> int:
    """`jepamba decompress`: the file back, to the byte."""
    from jepamba.compress import Compressor
    from jepamba.io import atomic_write
    from jepamba.progress import Progress, duration

    _check_output(args)
    started = time.monotonic()
    with Progress("decompressing") as report:
        data = Compressor.open(args.model).decompress_file(args.file, report)
    atomic_write(args.out, data)
    seconds = time.monotonic() - started
    if args.json:
        print(json.dumps({"bytes": len(data), "seconds": seconds}))
    else:
        print(f"{len(data):,} bytes, as they were, in {duration(seconds)}")
    return 0


def _check_output(args: Namespace) -> None:
    """The output must not be one of the inputs."""
    if args.out.exists() and any(path.exists() and args.out.samefile(path) for path in (args.file, args.model)):
        raise UserError(f"{args.out}: both read and written; give -o another name")
