"""A folder of shards built by jepamba: shards, their tokenizer, and `meta.json`, which describes both.

A folder is complete once it has `meta.json`. Readers open only the shards that `meta.json` lists.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jepamba.data.shards import open_shard
from jepamba.data.tokens import Tokens
from jepamba.errors import UserError, one_line
from jepamba.io import read_untrusted
from jepamba.text.tokenizers import Tokenizer, load_tokenizer
from jepamba.text.unrestored import Unrestored

META = "meta.json"
FORMAT = "jepamba tokens 1"
_MOST_BYTES = 64 << 20
"""Maximum size of `meta.json` and of the tokenizer."""
TOKENIZER_FILE = {"bytes": "tokenizer.bytes", "sentencepiece": "tokenizer.model"}


@dataclass(frozen=True)
class Split:
    """One split of a folder, as `meta.json` describes it. None means unknown, as for published shards."""

    documents: int | None
    text_bytes: int | None
    """UTF-8 bytes of the original documents."""
    decoded_bytes: int | None
    """Bytes that the tokens decode to. They differ from `text_bytes` if the tokenizer normalizes text."""
    tokens: int
    """Tokens, including one BOS per document."""
    shards: tuple[str, ...]
    overlap: float | None = None
    """Of a split that was held out, the share of its passages that occur in the training text; see `HeldOut`."""
    unrestored: Unrestored | None = None
    """What the tokens do not give back of the original documents."""
    bad_rows: int | None = None
    """Bad rows of the text that were left out. Of a source that was divided, the train split has those of val too."""


@dataclass(frozen=True)
class TokenFolder:
    """A folder of shards with its tokenizer and splits; see `open_folder`."""

    path: Path
    tokenizer: Tokenizer
    splits: Mapping[str, Split]

    def tokens(self, split: str, whole: bool = False) -> Tokens:
        """Open `split`, with the checks of `open_shard`. Raises `UserError` with the folder or shard name."""
        if split not in self.splits:
            raise UserError(f"{self.path}: no {split!r} split; its splits are {', '.join(self.splits) or 'none'}")
        expected = self.splits[split]
        shards = [open_shard(self.path / name, self.tokenizer.vocab_size, whole) for name in expected.shards]
        tokens = Tokens(
            shards,
            self.tokenizer,
            expected.text_bytes,
            expected.decoded_bytes,
            expected.unrestored,
            expected.bad_rows or 0,
        )
        if len(tokens) != expected.tokens:
            raise UserError(
                f"{self.path}: {META} says {expected.tokens} tokens of {split}, its shards have {len(tokens)}; "
                "build the folder again"
            )
        return tokens


def is_folder(path: str | Path) -> bool:
    """Whether `path` is a folder with a jepamba `meta.json`."""
    try:
        return _read_json(Path(path) / META).get("format") == FORMAT
    except UserError:
        return False


def open_folder(path: str | Path) -> TokenFolder:
    """Open the folder of shards at `path`. Raises `UserError` if `meta.json` or the tokenizer is damaged or missing."""
    folder = Path(path)
    meta = _read_json(folder / META)
    if meta.get("format") != FORMAT:
        raise UserError(f"{folder / META}: not the description of a folder of shards ({FORMAT!r})")
    try:
        kind = _string(meta["tokenizer"]["kind"])
        fingerprint = _string(meta["tokenizer"]["fingerprint"])
        splits = {_string(name): _split(values) for name, values in meta["splits"].items()}
        file = folder / TOKENIZER_FILE[kind]
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        reason = one_line(f"{type(error).__name__}: {error}")
        raise UserError(f"{folder / META}: damaged ({reason}); build the folder again") from None
    blob = read_untrusted(file, "the tokenizer of the shards", _MOST_BYTES)
    try:
        tokenizer = load_tokenizer(kind, blob)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{file}: not the tokenizer that made these shards; build the folder again")
    return TokenFolder(folder, tokenizer, splits)


def describe(tokenizer: Tokenizer, splits: Mapping[str, Split]) -> str:
    """Return the content of `meta.json`."""
    meta = {
        "format": FORMAT,
        "tokenizer": {
            "kind": tokenizer.kind,
            "vocab_size": tokenizer.vocab_size,
            "separator": tokenizer.separator,
            "fingerprint": tokenizer.fingerprint,
        },
        "splits": {name: asdict(split) for name, split in splits.items()},
    }
    return json.dumps(meta, indent=2) + "\n"


def _read_json(file: Path) -> dict[str, Any]:
    text = read_untrusted(file, "the description of the shards", _MOST_BYTES)
    try:
        meta = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{file}: damaged, not JSON; build the folder again") from None
    if not isinstance(meta, dict):
        raise UserError(f"{file}: damaged, not a JSON object; build the folder again")
    return meta


def _split(values: Mapping[str, Any]) -> Split:
    names = tuple(_string(name) for name in values["shards"])
    for name in names:
        if Path(name).name != name or name in ("", ".", "..") or not name.isprintable():
            raise ValueError(f"a shard named {name!r}")
    counts = {key: values[key] for key in ("documents", "text_bytes", "decoded_bytes", "tokens")}
    bad_rows = values.get("bad_rows")
    for key, value in [*counts.items(), ("bad_rows", bad_rows)]:
        if (value is None and key != "tokens") or (type(value) is int and value >= 0):
            continue
        raise ValueError(f"{key} = {value!r}")
    overlap = values.get("overlap")
    if overlap is not None and not (isinstance(overlap, float) and 0.0 <= overlap <= 1.0):
        raise ValueError(f"overlap = {overlap!r}")
    unrestored = values.get("unrestored")
    if unrestored is not None:
        unrestored = Unrestored(**unrestored)
        size, example = unrestored.bytes, _string(unrestored.example)
        if not (type(size) is int and size >= 0 and example.isprintable() and len(example) < 1000):
            raise ValueError(f"unrestored = {values['unrestored']!r}")
    return Split(**counts, shards=names, overlap=overlap, unrestored=unrestored, bad_rows=bad_rows)


def _string(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a string")
    return value
