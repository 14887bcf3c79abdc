"""Builds the tokens that `config.Data` describes: reads and splits text, trains a tokenizer, encodes, and caches."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from jepamba.config import Data
from jepamba.data.folder import META, TOKENIZER_FILE, TokenFolder, is_folder, open_folder
from jepamba.data.shards import SHARD_TOKENS, open_shard
from jepamba.data.source import Source, cache_key, private_cache_folder
from jepamba.data.tokens import Tokens
from jepamba.data.writer import FolderWriter
from jepamba.errors import UserError
from jepamba.io import atomic_write, check_writable
from jepamba.progress import Report
from jepamba.text.inventory import Inventory
from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer, train_bpe

CACHE_VERSION = 6
"""Increment this when the same settings and text give different tokens or a different `meta.json` than before."""


@dataclass(frozen=True)
class Corpus:
    """The training and validation tokens of a run, with their tokenizer."""

    train: Tokens
    val: Tokens
    tokenizer: Tokenizer
    val_text_bytes: int
    """Bytes of the original validation text, or `val.decoded_bytes` if the shards do not record it. The two differ if
    the tokenizer normalizes text."""
    overlap: float | None = None
    """Share of the passages of held-out text that occur in the training text; None with `data.val` or if unknown."""
    is_end: bool = False
    """Whether the validation text is the end of a single document, and the training text the rest."""


def build(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    out_dir: str | Path,
    split: str = "train",
    progress: Report | None = None,
    *,
    shard_tokens: int = SHARD_TOKENS,
) -> TokenFolder:
    """Encode `documents` as `split` of the folder `out_dir`.

    The folder can be new, or have other splits of the same tokenizer. It receives `text_{split}_*.bin` shards of at
    most `shard_tokens` tokens, the tokenizer and `meta.json`. An interrupted build does not change it. Raises
    `UserError` for a folder with other content, or without documents.
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


def corpus(config: Data, progress: Report | None = None, tokenizer: Tokenizer | None = None) -> Corpus:
    """Return the training and validation tokens of `config`. Text is encoded once and then cached.

    A `tokenizer` takes the place of the one that `config` names.

    `config.train` and `config.val` are text (see `read_documents`), a folder of shards, or a shard. Without
    `config.val`, validation is the `val` split of the folder of shards, or the fraction `config.holdout` of the
    documents, as `hold_out` selects them, or of a single document its end. A "bpe" tokenizer is trained on the training
    documents only. The cache key contains path, size and modification time of the files, the relevant settings, and the
    tokenizer.

    Runs with different seeds share their data and split. Raises `UserError` with the file name for text, shards or
    tokenizers that are invalid or do not match.
    """
    if is_shards(config.train):
        tokenizer = tokenizer or _shard_tokenizer(config)
        train = load_tokens(config.train, tokenizer, config, "train", progress)
        val = load_tokens(config.val or config.train, tokenizer, config, "val", progress)
        built = _folder_of(Path(config.train))
        splits = built.splits if built is not None else {}
        is_end = False
    else:
        source = _train_source(config)
        tokenizer = tokenizer or _text_tokenizer(config, source, progress)
        folder = _cached_folder(source, tokenizer, config, progress)
        train, splits = folder.tokens("train"), folder.splits
        val = load_tokens(config.val, tokenizer, config, "val", progress) if config.val else folder.tokens("val")
        one_each = not config.val and splits["train"].documents == splits["val"].documents == 1
        is_end = one_each and source.is_one_document()
    overlap = splits["val"].overlap if "val" in splits and not config.val else None
    size = val.decoded_bytes if val.text_bytes is None else val.text_bytes
    return Corpus(train, val, tokenizer, size, overlap, is_end)


def text_inventory(config: Data) -> dict[str, Inventory]:
    """List the files of `config` that are read and those that are not, for training and validation."""
    val = config.val or (config.train if is_shards(config.train) else "")
    texts = {"training": (config.train, "train"), "validation": (val, "val")}
    return {name: inventory(path, split, config) for name, (path, split) in texts.items() if path}


def inventory(path: str, split: str, config: Data | None = None) -> Inventory:
    """List the files that `load_tokens` reads of `path`, and those that it does not.

    With `config`, which has the column, text is checked as in `Source.checked_inventory`.
    """
    if not is_shards(path):
        if config is None:
            return Source((path,), "", split).inventory()
        return Source((path,), config.column, split, skip_bad=config.skip_bad).checked_inventory()
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.glob(f"*_{split}_*.bin"))
    known = {META, "source.json", *TOKENIZER_FILE.values()}
    others = [] if place.is_file() else [file.name for file in place.iterdir() if file.suffix not in (".bin", ".model")]
    left_out = [name for name in sorted(others) if name not in known and not name.startswith(".")]
    return Inventory(
        tuple((str(file), file.stat().st_size) for file in files), tuple((name, "no tokens") for name in left_out)
    )


def load_tokens(
    path: str | Path, tokenizer: Tokenizer, config: Data, split: str = "val", progress: Report | None = None
) -> Tokens:
    """Return `path` as tokens of `tokenizer`. Text is encoded and cached; of a folder of shards, `split` is opened.

    Arguments: `config`: its column, cache and byte_separator are used. `config.byte_separator` applies to byte shards
    without a `meta.json`; "auto" means no. Raises `UserError` as `corpus` does, and for shards of another tokenizer.
    """
    if not is_shards(path):
        source = Source((str(path),), config.column, split, skip_bad=config.skip_bad)
        return _cached_folder(source, tokenizer, config, progress).tokens(split)
    folder = _folder_of(Path(path))
    if folder is not None:
        if folder.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(
                f"{path}: its shards were made with {_tokenizer_name(folder.tokenizer)}, "
                f"not with {_tokenizer_name(tokenizer)}"
            )
        if Path(path).is_dir():
            return folder.tokens(split)
    elif tokenizer.kind == "bytes":
        tokenizer = ByteTokenizer(separator=config.byte_separator == "yes")
    if not split.isalnum():
        raise UserError(f"invalid split name {split!r}: use letters and digits, as in train and val")
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).glob(f"*_{split}_*.bin"))
    if not files:
        raise UserError(f"{path}: no *_{split}_*.bin shard in it; set data.{split} to another path")
    return Tokens([open_shard(file, tokenizer.vocab_size) for file in files], tokenizer)


def is_shards(path: str | Path) -> bool:
    """Whether `path` is a .bin file, or a folder with `meta.json`, `*_train_*.bin` or `*_val_*.bin`."""
    place = Path(path)
    if place.is_file():
        return place.suffix == ".bin"
    return is_folder(place) or any(next(place.glob(f"*_{split}_*.bin"), None) for split in ("train", "val"))


def _folder_of(path: Path) -> TokenFolder | None:
    """Open the folder with a `meta.json` that `path` is or is in. Returns None if there is none."""
    folder = path if path.is_dir() else path.parent
    return open_folder(folder) if is_folder(folder) else None


def _shard_tokenizer(config: Data) -> Tokenizer:
    """Return the tokenizer of the shards at `config.train`. Raises `UserError` if `config` sets another one."""
    folder = _folder_of(Path(config.train))
    if folder is None:
        if config.tokenizer == "bytes":
            return ByteTokenizer(separator=config.byte_separator == "yes")
        if config.tokenizer == "bpe":
            raise UserError(
                f"{config.train}: these shards do not name their tokenizer; set data.tokenizer to bytes or to "
                "the path of its .model"
            )
        return read_tokenizer(config.tokenizer)
    tokenizer = folder.tokenizer
    mismatch = tokenizer.kind != ("bytes" if config.tokenizer == "bytes" else "sentencepiece")
    if config.tokenizer.endswith(".model"):
        mismatch = tokenizer.fingerprint != read_tokenizer(config.tokenizer).fingerprint
    if mismatch:
        raise UserError(
            f"{config.train}: its shards were made with {_tokenizer_name(tokenizer)}, "
            f"not with data.tokenizer = {config.tokenizer!r}"
        )
    if (
        tokenizer.kind == "bytes"
        and config.byte_separator != "auto"
        and tokenizer.separator != (config.byte_separator == "yes")
    ):
        raise UserError(
            f"{config.train}: its shards were made with {_tokenizer_name(tokenizer)}, not with data.byte_separator = "
            f"{config.byte_separator!r}"
        )
    return tokenizer


def _tokenizer_name(tokenizer: Tokenizer) -> str:
    if tokenizer.kind == "bytes":
        return f"bytes ({'0 separates documents' if tokenizer.separator else 'every symbol is text'})"
    return f"a SentencePiece model of {tokenizer.vocab_size} pieces ({tokenizer.fingerprint[:12]})"


def _train_source(config: Data) -> Source:
    return Source((config.train,), config.column, "train", 0.0 if config.val else config.holdout, config.skip_bad)


def _text_tokenizer(config: Data, source: Source, progress: Report | None) -> Tokenizer:
    """Return the tokenizer of `config`. "bpe" trains one on the training documents of `source` and caches it."""
    if config.tokenizer == "bytes":
        return ByteTokenizer(separator=config.byte_separator != "no")
    if config.tokenizer != "bpe":
        return read_tokenizer(config.tokenizer)
    key = cache_key({"version": CACHE_VERSION, "source": source.identity(), "vocab": config.vocab})
    file = private_cache_folder(config.cache, "tokenizers") / f"{key}.model"
    if file.exists():
        try:
            return read_tokenizer(file)
        except UserError:
            file.unlink()
    check_writable(file)
    documents = source.pieces(_with_note(progress, "training the tokenizer"))
    tokenizer = train_bpe((text for split, text in documents if split == "train"), config.vocab)
    atomic_write(file, tokenizer.serialize())
    return tokenizer


def _cached_folder(source: Source, tokenizer: Tokenizer, config: Data, progress: Report | None) -> TokenFolder:
    """Return `source` encoded by `tokenizer`, from the cache if the cached folder is valid."""
    values = {"version": CACHE_VERSION, "source": source.identity(), "tokenizer": tokenizer.fingerprint}
    out = private_cache_folder(config.cache, "tokens") / cache_key(values)
    if out.exists():
        try:
            folder = open_folder(out)
            for split in folder.splits:
                folder.tokens(split)
            return folder
        except UserError:
            shutil.rmtree(out)
    report = _with_note(progress, "tokenizing")
    try:
        with FolderWriter(out, tokenizer) as writer:
            overlap = source.held_out(report).overlap if source.holdout else None
            writer.write(source.pieces(report), overlap, source.bad_rows)
    except UserError:
        # Another process may have written the same folder first.
        if not is_folder(out):
            raise
    return open_folder(out)


def _with_note(progress: Report | None, what: str) -> Report | None:
    """Wrap `progress` so that it shows `what` as its note."""
    if progress is None:
        return None

    def report(done: float, total: float, note: str = "") -> None:
        progress(done, total, note or what)

    return report
