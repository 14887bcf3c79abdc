"""`jepamba data`."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from itertools import chain
from typing import TYPE_CHECKING

from jepamba.commands.common import columns
from jepamba.errors import UserError
from jepamba.progress import Progress

if TYPE_CHECKING:
    from jepamba.data import TokenFolder


def data_build(args: Namespace) -> int:
    """`jepamba data build`: text to shards, with a tokenizer trained, given, or bytes."""
    from jepamba.config import Data
    from jepamba.data import is_shards
    from jepamba.data.source import Source
    from jepamba.data.writer import FolderWriter
    from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe

    checked = Data(tokenizer=args.tokenizer, vocab=args.vocab, column=args.column, holdout=args.holdout)
    for path in [*args.paths, args.val]:
        if path and is_shards(path):
            raise UserError(f"{path}: already shards; build takes text")
    holdout = 0.0 if args.val else checked.holdout
    sources = [Source(path, args.column, "train", holdout) for path in args.paths]
    tokenizer: Tokenizer
    if args.tokenizer == "bytes":
        tokenizer = ByteTokenizer()
    elif args.tokenizer == "bpe":
        with Progress("training the tokenizer") as report:
            documents = chain.from_iterable(source.documents(report) for source in sources)
            tokenizer = train_bpe((text for split, text in documents if split == "train"), args.vocab)
    else:
        tokenizer = read_tokenizer(args.tokenizer)
    if args.val:
        sources.append(Source(args.val, args.column, "val"))
    with Progress("tokenizing") as report, FolderWriter(args.out, tokenizer) as writer:
        writer.write(chain.from_iterable(source.documents(report) for source in sources))
    args.dir = args.out
    return data_info(args)


def data_info(args: Namespace) -> int:
    """`jepamba data info`: what a folder of shards holds."""
    from jepamba.data import is_shards, open_folder, open_shard
    from jepamba.data.folder import is_folder

    if not is_shards(args.dir):
        raise UserError(f"{args.dir}: no folder of shards; `jepamba data build TEXT --out {args.dir}` makes one")
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
    return _show(folder, args.json)


def data_fineweb(args: Namespace) -> int:
    """`jepamba data fineweb`: published shards of FineWeb into a folder, checked."""
    from jepamba.data.fineweb import fetch_fineweb

    args.on_interrupt = "interrupted; the same command goes on with the shards that are missing"
    with Progress("fetching shards") as report:
        folder = fetch_fineweb(args.variant, args.shards, args.out, args.repo, args.revision, report)
    _show(folder, args.json)
    if "val" not in folder.splits:
        print("jepamba: no fineweb_val_*.bin there; for training, name other text with --data.val", file=sys.stderr)
    if not args.json:
        preset = "submission-byte" if args.variant == "bytes" else "submission-bpe"
        print(f"\nnext: jepamba train {preset} --data.train {args.out}")
    return 0


def _show(folder: TokenFolder, as_json: bool) -> int:
    """Print what `folder` holds."""
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
    print(columns([["split", "documents", "bytes", "tokens", "bytes a token"], *rows]))
    print(f"\ntokenizer: {kind} of {size:,} symbols, {folder.tokenizer.fingerprint[:12]}")
    return 0
