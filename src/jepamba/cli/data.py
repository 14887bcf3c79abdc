"""`jepamba data`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from typing import TYPE_CHECKING

from jepamba.cli.common import columns
from jepamba.cli.parser import Commands, local_path
from jepamba.errors import UserError

if TYPE_CHECKING:
    from jepamba.data import TokenFolder


def add(commands: Commands) -> None:
    """Add `jepamba data`."""
    group = commands.group("data", "Build, fetch or describe shards of tokens.", ["jepamba data build --help"])
    build = group.add(
        "build",
        data_build,
        "Tokenize text into a folder of shards; train a tokenizer if none is given.",
        [
            "jepamba data build mytext/ --out shards --tokenizer bpe --vocab 8192",
            "jepamba data build train.jsonl --column body --val val.jsonl --out shards --tokenizer sp8192.model",
            "jepamba data build a.txt.xz b.txt.xz --out shards --tokenizer bytes",
            "jepamba data build hf://owner/name --column text --out shards",
            "jepamba data build hf://owner/name/folder --val hf://owner/name/folder:validation --out shards",
        ],
    )
    build.add_argument("paths", nargs="+", metavar="PATH", help="text file, folder, JSONL, parquet, hf://… or `stdlib`")
    build.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder for the shards")
    build.add_argument(
        "--tokenizer", default="bpe", metavar="T", help="bpe (trained on PATH), bytes, or a .model file (default: bpe)"
    )
    build.add_argument("--vocab", type=int, default=8192, metavar="N", help="vocabulary size of bpe (default: 8192)")
    build.add_argument("--column", default="text", metavar="C", help="column of JSONL and parquet (default: text)")
    build.add_argument(
        "--skip-bad", type=int, default=0, metavar="N", help="bad rows that may be left out (default: 0)"
    )
    build.add_argument("--val", default="", metavar="PATH", help="validation text (default: a share of PATH)")
    build.add_argument(
        "--holdout", type=float, default=0.1, metavar="S", help="validation share of PATH without --val (default: 0.1)"
    )
    fineweb = group.add(
        "fineweb",
        data_fineweb,
        "Download published FineWeb shards and their tokenizer from the Hugging Face hub.",
        [
            "jepamba data fineweb --variant sp8192 --shards 10 --out fineweb",
            "jepamba data fineweb --variant bytes --shards 5 --out fineweb-bytes",
            "jepamba data fineweb --variant sp8192 --shards 80 --out kevclark --repo kevclark/parameter-golf",
            "HF_ENDPOINT=https://hub.example jepamba data fineweb --shards 10 --out fineweb",
        ],
    )
    fineweb.add_argument(
        "--variant", choices=("sp8192", "bytes"), default="sp8192", help="tokenizer of the shards (default: sp8192)"
    )
    fineweb.add_argument(
        "--shards", type=int, default=1, metavar="N", help="training shards of 100 M tokens, 0.2 GB each (default: 1)"
    )
    fineweb.add_argument("--out", type=local_path, required=True, metavar="DIR", help="folder for the shards")
    fineweb.add_argument("--repo", default="", metavar="OWNER/NAME", help="another hub repository")
    fineweb.add_argument("--revision", default="", metavar="R", help="branch, tag or commit (default: main)")
    info = group.add("info", data_info, "Describe a folder of shards.", ["jepamba data info shards"])
    info.add_argument("dir", type=local_path, metavar="DIR", help="folder of shards, or one shard")


def data_build(args: Namespace) -> int:
    """Run `jepamba data build` and print the contents of the folder."""
    from jepamba.config import Data
    from jepamba.data import is_shards
    from jepamba.data.hub_text import pinned
    from jepamba.data.shared_files import shared_files, shared_in_words
    from jepamba.data.source import Source
    from jepamba.data.writer import FolderWriter, check_output_folder
    from jepamba.hub_names import HUB
    from jepamba.progress import Progress, print_line
    from jepamba.text.inventory import table
    from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe

    checked = Data(
        tokenizer=args.tokenizer, vocab=args.vocab, column=args.column, holdout=args.holdout, skip_bad=args.skip_bad
    )
    for path in [*args.paths, args.val]:
        if path and is_shards(path):
            raise UserError(f"{path}: these are shards already; build needs text")
    check_output_folder(args.out, "train", "val")
    holdout = 0.0 if args.val else checked.holdout
    splits = {**dict.fromkeys(args.paths, "train"), args.val: "val"}
    for name, split in splits.items():
        if name.startswith(HUB):
            print_line(f"jepamba: reading {pinned(name, split)}")
    source = Source(tuple(args.paths), args.column, "train", holdout, args.skip_bad)
    sources = {"training": source}
    if args.val:
        sources["validation"] = Source((args.val,), args.column, "val", skip_bad=args.skip_bad)
    files = table({name: source.checked_inventory() for name, source in sources.items()})
    if files:
        print_line(files)
    shared = shared_files(args.paths, args.val) if args.val else {}
    if shared:
        print_line(f"jepamba: {shared_in_words(list(shared))}")
    tokenizer: Tokenizer
    if args.tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    elif args.tokenizer == "bpe":
        with Progress("training the tokenizer") as report:
            tokenizer = train_bpe((text for split, text in source.pieces(report) if split == "train"), args.vocab)
    else:
        tokenizer = read_tokenizer(args.tokenizer)
    with Progress("tokenizing") as report, FolderWriter(args.out, tokenizer) as writer:
        overlap = source.held_out(report).overlap if holdout else None
        if shared:
            overlap = sum(shared.values()) / max(sum(size for _, size in sources["validation"].inventory().read), 1)
        for text in sources.values():
            writer.write(text.pieces(report), overlap, text.bad_rows)
            if text.bad_rows.count:
                report.say(f"jepamba: {text.bad_rows.in_words()}")
    args.dir = args.results_in = args.out
    return data_info(args)


def data_info(args: Namespace) -> int:
    """Run `jepamba data info`: check a folder of shards and print its contents."""
    from jepamba.data import is_shards, open_folder, open_shard
    from jepamba.data.folder import is_folder

    if not is_shards(args.dir):
        raise UserError(f"{args.dir}: not a folder of shards; `jepamba data build TEXT --out {args.dir}` makes one")
    if not is_folder(args.dir):
        files = [args.dir] if args.dir.is_file() else sorted(args.dir.glob("*.bin"))
        counts = {file.name: len(open_shard(file, 1 << 16)) for file in files}
        if args.json:
            print(json.dumps({"folder": str(args.dir), "tokenizer": None, "shards": counts}))
        else:
            print(columns([["shard", "tokens"], *([name, f"{count:,}"] for name, count in counts.items())]))
        return 0
    folder = open_folder(args.dir)
    for split in folder.splits:
        folder.tokens(split, whole=True)
    return _print_folder(folder, args.json)


def data_fineweb(args: Namespace) -> int:
    """Run `jepamba data fineweb`: download shards, check them and print the contents of the folder."""
    from jepamba.data.fineweb import fetch_fineweb
    from jepamba.progress import Progress

    args.on_interrupt = "interrupted; the same command downloads the missing shards"
    with Progress("downloading shards") as report:
        folder = fetch_fineweb(args.variant, args.shards, args.out, args.repo, args.revision, report)
    args.results_in = args.out
    _print_folder(folder, args.json)
    if "val" not in folder.splits:
        print("jepamba: no fineweb_val_*.bin found; for training, give other text with --data.val", file=sys.stderr)
    if not args.json:
        preset = "submission-byte" if args.variant == "bytes" else "submission-bpe"
        print(f"\nnext: jepamba train {preset} --data.train {args.out}")
    return 0


def _print_folder(folder: TokenFolder, as_json: bool) -> int:
    """Print the tokenizer and the splits of `folder`."""
    from jepamba.text.near_duplicates import overlap_in_words

    kind, size = folder.tokenizer.kind, folder.tokenizer.vocab_size
    if as_json:
        tokenizer = {"kind": kind, "vocab_size": size, "fingerprint": folder.tokenizer.fingerprint}
        splits = {name: asdict(split) for name, split in folder.splits.items()}
        print(json.dumps({"folder": str(folder.path), "tokenizer": tokenizer, "splits": splits}))
        return 0
    rows = [
        [
            name,
            "" if split.documents is None else f"{split.documents:,}",
            "" if split.text_bytes is None else f"{split.text_bytes:,}",
            f"{split.tokens:,}",
            "" if split.text_bytes is None else f"{split.text_bytes / max(split.tokens, 1):.2f}",
        ]
        for name, split in folder.splits.items()
    ]
    print(columns([["split", "documents", "bytes", "tokens", "bytes per token"], *rows]))
    for name, split in folder.splits.items():
        if split.overlap is not None:
            print(f"\n{name}: held out, {overlap_in_words(split.overlap)}")
        if split.bad_rows:
            print(f"\n{name}: bad rows of the text left out: {split.bad_rows:,}")
        if split.unrestored is not None and split.unrestored.bytes:
            print(f"\n{name}: {split.unrestored.in_words(split.text_bytes or 0)}")
    print(f"\ntokenizer: {kind}, {size:,} tokens, fingerprint {folder.tokenizer.fingerprint[:12]}")
    return 0
