"""`jepamba compress` and `jepamba decompress`."""

from __future__ import annotations

import json
import time
from argparse import Namespace
from pathlib import Path

from jepamba.cli.common import add_artifact, add_optional_artifact, artifact_or_shipped, check_output, summary_printer
from jepamba.cli.parser import Commands, local_path, output_file
from jepamba.cli.streams import STDIN, read_stdin


def add(commands: Commands) -> None:
    """Add `jepamba compress` and `jepamba decompress`."""
    compressing = commands.add(
        "compress",
        compress,
        "Compress any file without loss, with the model of an artifact.",
        [
            "jepamba compress notes.txt -o notes.jpc",
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc",
            "jepamba compress notes.txt --model runs/mine/artifact.jepa -o notes.jpc --lanes 1 --json",
        ],
    )
    decompressing = commands.add(
        "decompress",
        decompress,
        "Restore the original of a file that `jepamba compress` wrote.",
        [
            "jepamba decompress notes.jpc -o notes.txt",
            "jepamba decompress notes.jpc --model runs/mine/artifact.jepa -o notes.txt",
            "curl https://example.org/notes.jpc | jepamba decompress - --model runs/mine -o notes.txt",
        ],
    )
    for command in (compressing, decompressing):
        command.add_argument(
            "-o", "--out", type=output_file, required=True, metavar="OUT", help="file to write; -: standard output"
        )
        command.add_argument("file", type=local_path, metavar="FILE", help="file to read; -: standard input")
    add_optional_artifact(compressing, "--model")
    add_artifact(
        decompressing,
        "--model",
        help="the artifact that compressed (default: found by its sha256, in the package and in the folder runs)",
    )
    compressing.add_argument(
        "--lanes", type=int, default=0, metavar="N", help="parallel lanes (default: by size); fewer are slower"
    )


def compress(args: Namespace) -> int:
    """Run `jepamba compress` and print the sizes."""
    from jepamba.artifact.locate import locate
    from jepamba.compress import MAX_BYTES, OVERHEAD, Compressor
    from jepamba.io import atomic_write, read_untrusted
    from jepamba.progress import Progress, duration

    model = locate(artifact_or_shipped(args.model))
    check_output(args.out, args.file, model)
    what = "the file to compress"
    data = read_stdin(what, MAX_BYTES) if str(args.file) == STDIN else read_untrusted(args.file, what, MAX_BYTES)
    started = time.monotonic()
    with Progress("compressing") as report:
        result = Compressor.open(model).compress(data, args.lanes, report)
    print_summary = summary_printer(args.out)
    atomic_write(args.out, result.content)
    args.results_in = args.out
    seconds = time.monotonic() - started
    if args.json:
        fields = {
            "bytes": result.original_bytes,
            "compressed_bytes": len(result.content),
            "bpb": result.bpb,
            "model_bpb": result.model_bpb,
            "tokens": result.tokens,
            "lanes": result.lanes,
            "corrections": result.corrections,
            "corrections_bytes": result.corrections_bytes,
            "seconds": seconds,
        }
        print_summary(json.dumps(fields))
        return 0
    print_summary(
        f"{result.original_bytes:,} bytes compressed to {len(result.content):,}: {result.bpb:.4f} bits per byte",
    )
    if result.tokens:
        print_summary(
            f"model alone: {result.model_bpb:.4f} bits per byte over {result.tokens:,} tokens in {result.lanes} lanes; "
            f"corrections of tokenizer losses: {result.corrections:,} in {result.corrections_bytes:,} bytes; "
            f"time: {duration(seconds)}",
        )
    else:
        print_summary("stored uncompressed: the model does not make this file smaller")
    if len(result.content) > result.original_bytes:
        print_summary(
            f"larger than the original: every compressed file has {OVERHEAD} bytes for its checks and its model"
        )
    return 0


def decompress(args: Namespace) -> int:
    """Run `jepamba decompress` and print the size of the restored file."""
    from jepamba.artifact.locate import ARTIFACT, SHIPPED, locate
    from jepamba.compress import MAX_FILE_BYTES, Compressor, find_model
    from jepamba.io import atomic_write, read_untrusted
    from jepamba.progress import Progress, duration, print_line

    what, name = "a compressed file", str(args.file)
    if name == STDIN:
        name, content = "standard input", read_stdin(what, MAX_FILE_BYTES)
    else:
        content = read_untrusted(args.file, what, MAX_FILE_BYTES)
    if args.model is not None:
        model = locate(args.model)
    else:
        model = find_model(name, content, [SHIPPED, *sorted(Path("runs").glob(f"*/{ARTIFACT}"))])
        print_line(f"jepamba: {name} was compressed with {model}")
    check_output(args.out, args.file, model)
    started = time.monotonic()
    with Progress("decompressing") as report:
        data = Compressor.open(model).decompress_named(name, content, report)
    print_summary = summary_printer(args.out)
    atomic_write(args.out, data)
    args.results_in = args.out
    seconds = time.monotonic() - started
    if args.json:
        print_summary(json.dumps({"bytes": len(data), "seconds": seconds}))
    else:
        print_summary(f"{len(data):,} bytes restored in {duration(seconds)}")
    return 0
