"""Writing documents as a folder of shards: complete, or not there."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from jepamba.data.folder import META, TOKENIZER_FILE, Split, describe, is_folder, open_folder
from jepamba.data.shards import SHARD_TOKENS, ShardWriter
from jepamba.errors import UserError
from jepamba.text.protocol import join_documents, utf8
from jepamba.text.tokenizers import Tokenizer

BATCH_CHARS = 1 << 21
"""Documents are encoded together until they have so many characters."""


class FolderWriter:
    """A context that writes splits into the folder `out`, which appears, or grows, when the context is left.

    Until then everything lies in a hidden folder beside it, and an exception takes that away again. `out` may be new,
    empty, or a folder of ours without the splits that are written, made with the same tokenizer.

    Raises `UserError` on entering if `out` is anything else, and on leaving if a split got no document.
    """

    def __init__(self, out: Path, tokenizer: Tokenizer, limit: int = SHARD_TOKENS) -> None:
        self.out, self.tokenizer, self.limit = out, tokenizer, limit
        self._old: dict[str, Split] = {}
        self._new: dict[str, Split] = {}

    def __enter__(self) -> FolderWriter:
        if is_folder(self.out):
            folder = open_folder(self.out)
            if folder.tokenizer.fingerprint != self.tokenizer.fingerprint:
                raise UserError(f"{self.out}: its shards were made with another tokenizer; choose another folder")
            self._old = dict(folder.splits)
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"{self.out}: exists and is no folder of shards of ours; choose another folder")
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            # Not by `tempfile`, whose folders are for one user alone: this one has what the umask leaves.
            self._work = self.out.with_name(f".{self.out.name}.{secrets.token_hex(8)}.partial")
            self._work.mkdir()
        except OSError as error:
            raise UserError(f"{self.out}: cannot write there ({error.strerror})") from None
        return self

    def write(self, documents: Iterable[tuple[str, str]]) -> None:
        """Encode `documents`, pairs of split and text, each with BOS in front where the tokenizer separates them.

        A NUL ends a document. Raises `UserError` for a split that the folder has already.
        """
        with ExitStack() as stack:
            writers: dict[str, ShardWriter] = {}
            for batch in _batches(documents):
                encoded = self.tokenizer.encode_batch([text for _, text in batch])
                for split in dict.fromkeys(name for name, _ in batch):
                    if split not in writers:
                        self._start(split)
                        writers[split] = stack.enter_context(ShardWriter(self._work, "text", split, self.limit))
                    of_split = [index for index, (name, _) in enumerate(batch) if name == split]
                    tokens = join_documents(self.tokenizer, [encoded[index] for index in of_split])
                    writers[split].append(tokens)
                    self._count(split, [batch[index][1] for index in of_split], tokens)
        for split, writer in writers.items():
            self._new[split] = replace(self._new[split], shards=tuple(name for name, _ in writer.files))

    def _start(self, split: str) -> None:
        if split in self._old or split in self._new:
            raise UserError(f"{self.out}: has a {split!r} split already; choose another folder")
        if not split.isalnum():
            raise UserError(f"a split named {split!r}: use letters and digits, as in train and val")
        self._new[split] = Split(0, 0, 0, 0, ())

    def _count(self, split: str, texts: list[str], tokens: NDArray[np.uint16]) -> None:
        # What precedes a document does not matter to its own bytes where BOS starts it, nor in byte mode.
        previous = np.concatenate([tokens[:1], tokens[:-1]])
        so_far = self._new[split]
        self._new[split] = Split(
            documents=(so_far.documents or 0) + len(texts),
            text_bytes=(so_far.text_bytes or 0) + sum(len(utf8(text)) for text in texts),
            decoded_bytes=(so_far.decoded_bytes or 0) + int(self.tokenizer.target_bytes(previous, tokens).sum()),
            tokens=so_far.tokens + len(tokens),
            shards=(),
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._commit()
        finally:
            shutil.rmtree(self._work, ignore_errors=True)

    def _commit(self) -> None:
        if not self._new:
            raise UserError(f"{self.out}: nothing to write, no document has any text")
        (self._work / TOKENIZER_FILE[self.tokenizer.kind]).write_bytes(self.tokenizer.serialize())
        (self._work / META).write_text(describe(self.tokenizer, self._old | self._new), encoding="utf-8")
        try:
            if self._old:
                # The old meta.json does not list the new shards: until the new one is there, nothing has changed.
                for split in self._new.values():
                    for name in split.shards:
                        os.replace(self._work / name, self.out / name)
                os.replace(self._work / META, self.out / META)
            else:
                os.rename(self._work, self.out)
        except OSError as error:
            raise UserError(f"{self.out}: cannot be written ({error.strerror})") from None


def _batches(documents: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for split, document in documents:
        for text in document.split("\0"):
            if text:
                batch.append((split, text))
                size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
