"""From the settings of `config.Data` to tokens: reading, splitting, training a tokenizer, encoding, each once."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jepamba.config import Data
from jepamba.data.folder import TokenFolder, is_folder, open_folder
from jepamba.data.shards import SHARD_TOKENS, open_shard
from jepamba.data.source import Source, cache_folder, cache_key
from jepamba.data.tokens import Tokens
from jepamba.data.writer import FolderWriter
from jepamba.errors import UserError
from jepamba.io import atomic_write
from jepamba.progress import Report
from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe

CACHE_VERSION = 1
"""Counts up when the same settings and text give other tokens than before."""


@dataclass(frozen=True)
class Corpus:
    """What a run trains on and what it is judged by."""

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    val_text_bytes: int
    """Bytes of the original validation text; differs from `val.decoded_bytes` if the tokenizer normalises text. Shards
    without a record of it: the decoded bytes."""


def build(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    out_dir: str | Path,
    split: str = "train",
    progress: Report | None = None,
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenFolder:
    """Encode `documents` as `split` of the folder `out_dir`, new or with other splits of the same tokenizer.

    The folder then holds `text_{split}_*.bin` shards of at most `shard_tokens` tokens, the tokenizer and `meta.json`;
    an interrupted build leaves it as it was. Raises `UserError` for a folder with other content, or no documents.
    """

    def labelled() -> Iterator[tuple[str, str]]:
        size = 0
        for text in documents:
            yield split, text
            size += len(text)
            if progress is not None:
                progress(size, 0, f"{size / 1e6:.1f} M characters")

    with FolderWriter(Path(out_dir), tokenizer, shard_tokens) as writer:
        writer.write(labelled())
    return open_folder(out_dir)


def corpus(config: Data, progress: Report | None = None) -> Corpus:
    """The training and validation tokens that `config` describes; text is encoded once and then cached.

    `config.train` and `config.val` are text (see `read_documents`), a folder of shards, or a shard. Without
    `config.val`, validation is the `val` split of the folder of shards, or `config.holdout` of the documents, chosen
    by their text alone. A "bpe" tokenizer is trained on the training documents only. The cache is keyed by the files'
    paths, sizes and times of change, the settings that matter, and the tokenizer.

    No seed takes part: runs that differ in theirs share their data and their split.
    Raises `UserError` for text, shards or tokenizers that do not fit, naming the file.
    """
    if is_shards(config.train):
        tokenizer = _shard_tokenizer(config)
        train = load_tokens(config.train, tokenizer, config, "train", progress)
        val = load_tokens(config.val or config.train, tokenizer, config, "val", progress)
    else:
        source = _train_source(config)
        tokenizer = _text_tokenizer(config, source, progress)
        folder = _cached(source, tokenizer, config, progress)
        train = folder.tokens("train")
        val = load_tokens(config.val, tokenizer, config, "val", progress) if config.val else folder.tokens("val")
    return Corpus(train, val, tokenizer, val.decoded_bytes if val.text_bytes is None else val.text_bytes)


def load_tokens(
    path: str | Path, tokenizer: Tokenizer, config: Data, split: str = "val", progress: Report | None = None
) -> Tokens:
    """All of `path` as tokens of `tokenizer`: text is encoded (and cached), of shards `split` is opened.

    Arguments: `config`, for its column, cache and byte_separator. Byte shards that do not say whether 0 separates
    documents are read as `config.byte_separator` says, "auto" being no. Raises `UserError` as `corpus` does, and for
    shards that were made with another tokenizer.
    """
    if not is_shards(path):
        return _cached(Source(str(path), config.column, split), tokenizer, config, progress).tokens(split)
    folder = _folder_of(Path(path))
    if folder is not None:
        if folder.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{path}: its shards were made with {_name(folder.tokenizer)}, not with {_name(tokenizer)}")
        if Path(path).is_dir():
            return folder.tokens(split)
    elif tokenizer.kind == "bytes":
        tokenizer = ByteTokenizer(separator=config.byte_separator == "yes")
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob(f"*_{split}_*.bin"))
    if not files:
        raise UserError(f"{path}: no *_{split}_*.bin shard in it; give data.{split} another path")
    return Tokens([open_shard(file, tokenizer.vocab_size) for file in files], tokenizer)


def is_shards(path: str | Path) -> bool:
    """Whether `path` holds tokens rather than text: a .bin file, or a folder with `*_train_*.bin` or `*_val_*.bin`."""
    place = Path(path)
    if place.is_file():
        return place.suffix == ".bin"
    return is_folder(place) or any(next(place.glob(f"*_{split}_*.bin"), None) for split in ("train", "val"))


def _folder_of(path: Path) -> TokenFolder | None:
    """The folder of ours that `path` is, or lies in."""
    folder = path if path.is_dir() else path.parent
    return open_folder(folder) if is_folder(folder) else None


def _shard_tokenizer(config: Data) -> Tokenizer:
    """The tokenizer of the shards at `config.train`, which must be the one that `config` asks for."""
    folder = _folder_of(Path(config.train))
    if folder is None:
        if config.tokenizer == "bytes":
            return ByteTokenizer(separator=config.byte_separator == "yes")
        if config.tokenizer == "bpe":
            raise UserError(
                f"{config.train}: these shards do not say what tokenizer made them; set data.tokenizer to bytes or to "
                "the path of its .model"
            )
        return read_tokenizer(config.tokenizer)
    made = folder.tokenizer
    wrong = made.kind != ("bytes" if config.tokenizer == "bytes" else "sentencepiece")
    if config.tokenizer.endswith(".model"):
        wrong = made.fingerprint != read_tokenizer(config.tokenizer).fingerprint
    if wrong:
        raise UserError(
            f"{config.train}: its shards were made with {_name(made)}, not with data.tokenizer = {config.tokenizer!r}"
        )
    if made.kind == "bytes" and config.byte_separator != "auto" and made.separator != (config.byte_separator == "yes"):
        raise UserError(
            f"{config.train}: its shards were made with {_name(made)}, which data.byte_separator = "
            f"{config.byte_separator!r} contradicts"
        )
    return made


def _name(tokenizer: Tokenizer) -> str:
    if tokenizer.kind == "bytes":
        return f"bytes ({'0 separates documents' if tokenizer.separator else 'every symbol is text'})"
    return f"a SentencePiece model of {tokenizer.vocab_size} pieces ({tokenizer.fingerprint[:12]})"


def _train_source(config: Data) -> Source:
    return Source(config.train, config.column, "train", 0.0 if config.val else config.holdout)


def _text_tokenizer(config: Data, source: Source, progress: Report | None) -> Tokenizer:
    """The tokenizer that `config` asks for; "bpe" is trained on the training documents of `source`, and cached."""
    if config.tokenizer == "bytes":
        return ByteTokenizer(separator=config.byte_separator != "no")
    if config.tokenizer != "bpe":
        return read_tokenizer(config.tokenizer)
    key = cache_key({"version": CACHE_VERSION, "source": source.identity(), "vocab": config.vocab})
    file = cache_folder(config.cache) / "tokenizers" / f"{key}.model"
    if file.exists():
        try:
            return read_tokenizer(file)
        except UserError:
            file.unlink()
    documents = source.documents(_noted(progress, "training the tokenizer"))
    tokenizer = train_bpe((text for split, text in documents if split == "train"), config.vocab)
    atomic_write(file, tokenizer.serialize())
    return tokenizer


def _cached(source: Source, tokenizer: Tokenizer, config: Data, progress: Report | None) -> TokenFolder:
    """The folder of shards that `source` gives with `tokenizer`, from the cache if it is there and whole."""
    values = {"version": CACHE_VERSION, "source": source.identity(), "tokenizer": tokenizer.fingerprint}
    out = cache_folder(config.cache) / "tokens" / cache_key(values)
    if out.exists():
        try:
            folder = open_folder(out)
            for split in folder.splits:
                folder.tokens(split)
            return folder
        except UserError:
            shutil.rmtree(out)
    try:
        with FolderWriter(out, tokenizer) as writer:
            writer.write(source.documents(_noted(progress, "tokenizing")))
    except UserError:
        # Another process may have been faster with the very same content.
        if not is_folder(out):
            raise
    return open_folder(out)


def _noted(progress: Report | None, what: str) -> Report | None:
    """`progress` with `what` beside it."""
    if progress is None:
        return None

    def report(done: float, total: float, note: str = "") -> None:
        progress(done, total, note or what)

    return report
