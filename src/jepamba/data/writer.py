"""Writes documents as a folder of shards, atomically."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain, groupby, islice
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from jepamba.data.folder import META, TOKENIZER_FILE, Split, describe, is_folder, open_folder
from jepamba.data.shards import SHARD_TOKENS, ShardWriter
from jepamba.errors import UserError
from jepamba.folder_lock import locked, work_folder
from jepamba.io import check_writable_folder, resolved, unwritable
from jepamba.text.documents import BadRows
from jepamba.text.protocol import Continuation, join_documents, utf8
from jepamba.text.tokenizers import Tokenizer
from jepamba.text.unrestored import Unrestored, compare

BATCH_CHARS = 1 << 21
"""Minimum characters of a batch of documents that are encoded together."""
_DECODED_TOKENS = 1 << 16


class _Part(NamedTuple):
    """Encoded documents of one split, or a piece of a long document."""

    split: str
    documents: int
    """Documents that start in this part."""
    text: str
    tokens: NDArray[np.uint16]
    before: int | None
    """The token before the part, if it continues a document."""


class FolderWriter:
    """A context manager that writes splits into the folder `out`.

    It writes into a hidden folder, next to `out` if that is new, else in it: `out` may be a mounted volume, or the
    current folder. The exit of the context moves the files to `out`; an exception deletes them. `out` must be new,
    empty, or a folder of shards with the same tokenizer and without the new splits.

    Raises `UserError` at entry if `out` is anything else, and at exit if no document was written.
    """

    def __init__(self, out: Path, tokenizer: Tokenizer, limit: int = SHARD_TOKENS) -> None:
        self.out, self.tokenizer, self.limit = out, tokenizer, limit
        self._new: dict[str, Split] = {}

    def __enter__(self) -> FolderWriter:
        check_output_folder(self.out, tokenizer=self.tokenizer)
        place = resolved(self.out)
        self._is_new = not place.exists()
        self._stack = ExitStack()
        try:
            parent = place.parent if self._is_new else place
            self._work = self._stack.enter_context(work_folder(parent, place.name))
        except OSError as error:
            raise unwritable(self.out, error) from None
        return self

    def write(
        self,
        documents: Iterable[tuple[str, str]],
        val_overlap: float | None = None,
        bad_rows: BadRows | None = None,
    ) -> None:
        """Encode `documents`, pairs of (split, text), with BOS before each if the tokenizer has a separator.

        A NUL ends a document; a `Continuation` continues it. `val_overlap` is recorded as the `overlap` of the val
        split, and the number of `bad_rows` after the last document in the first split. Raises `UserError` if the folder
        already has the split.
        """
        writers: dict[str, ShardWriter] = {}
        with self._writing(), ExitStack() as stack:
            for batch in _batches(documents):
                for part in self._encoded(batch) if isinstance(batch, list) else self._encoded_pieces(*batch):
                    if part.split not in writers:
                        self._start_split(part.split)
                        writers[part.split] = stack.enter_context(
                            ShardWriter(self._work, "text", part.split, self.limit)
                        )
                    writers[part.split].append(part.tokens)
                    self._count(part)
        for index, (split, writer) in enumerate(sorted(writers.items())):
            shards, overlap = tuple(name for name, _ in writer.files), val_overlap if split == "val" else None
            bad = 0 if index or bad_rows is None else bad_rows.count
            self._new[split] = replace(self._new[split], shards=shards, overlap=overlap, bad_rows=bad)

    def _encoded(self, batch: list[tuple[str, str]]) -> Iterator[_Part]:
        encoded = self.tokenizer.encode_batch([text for _, text in batch])
        for split in dict.fromkeys(name for name, _ in batch):
            of_split = [index for index, (name, _) in enumerate(batch) if name == split]
            tokens = join_documents(self.tokenizer, [encoded[index] for index in of_split])
            yield _Part(split, len(of_split), "".join([batch[index][1] for index in of_split]), tokens, None)

    def _encoded_pieces(self, split: str, texts: Iterable[str]) -> Iterator[_Part]:
        """Encode a long document, the concatenation of `texts`."""
        before = None
        for index, (piece, ids) in enumerate(self.tokenizer.encode_pieces(texts)):
            tokens = ids if index else join_documents(self.tokenizer, [ids])
            yield _Part(split, int(not index), piece, tokens, before)
            before = int(tokens[-1]) if tokens.size else before

    def _start_split(self, split: str) -> None:
        check_output_folder(self.out, split)
        if not split.isalnum():
            raise UserError(f"invalid split name {split!r}: use letters and digits, as in train and val")
        self._new[split] = Split(0, 0, 0, 0, (), unrestored=Unrestored())

    def _count(self, part: _Part) -> None:
        # Where there is no token before, it does not matter: the document starts with BOS, or the tokenizer is bytes.
        first = part.tokens[:1] if part.before is None else np.array([part.before], dtype=np.uint16)
        previous = np.concatenate([first, part.tokens[:-1]])[: len(part.tokens)]
        totals = self._new[part.split]
        self._new[part.split] = Split(
            documents=(totals.documents or 0) + part.documents,
            text_bytes=(totals.text_bytes or 0) + len(utf8(part.text)),
            decoded_bytes=(totals.decoded_bytes or 0) + int(self.tokenizer.target_bytes(previous, part.tokens).sum()),
            tokens=totals.tokens + len(part.tokens),
            shards=(),
            unrestored=(totals.unrestored or Unrestored()) + compare(part.text, self._decoded(part)),
        )

    def _decoded(self, part: _Part) -> bytes:
        """Decode the tokens of `part` in slices, which bounds the memory."""
        tokens = part.tokens
        return b"".join(
            self.tokenizer.decode(tokens[at : at + _DECODED_TOKENS], int(tokens[at - 1]) if at else part.before)
            for at in range(0, len(tokens), _DECODED_TOKENS)
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            if kind is None:
                self._commit()

    def _commit(self) -> None:
        if not self._new:
            raise UserError(f"{self.out}: nothing to write, no document has text")
        with self._writing():
            (self._work / TOKENIZER_FILE[self.tokenizer.kind]).write_bytes(self.tokenizer.serialize())
            if self._is_new:
                self._write_meta({})
                os.rename(self._work, resolved(self.out))
            else:
                with locked(self.out):
                    self._add_to_folder()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Name the folder in the error of a full disk or another refusal."""
        try:
            yield
        except OSError as error:
            raise unwritable(self.out, error) from None

    def _add_to_folder(self) -> None:
        # Another process may have added splits since the start.
        check_output_folder(self.out, *self._new, tokenizer=self.tokenizer)
        self._write_meta(open_folder(self.out).splits if is_folder(self.out) else {})
        # The old meta.json does not list the new shards, so readers ignore them until it is replaced, at last.
        for file in sorted(self._work.iterdir(), key=lambda file: file.name == META):
            os.replace(file, self.out / file.name)

    def _write_meta(self, old: Mapping[str, Split]) -> None:
        (self._work / META).write_text(describe(self.tokenizer, {**old, **self._new}), encoding="utf-8")


def check_output_folder(out: Path, *splits: str, tokenizer: Tokenizer | None = None) -> None:
    """Raise `UserError` if `FolderWriter` cannot write `splits` to `out`, as far as can be known before."""
    check_writable_folder(out)
    if is_folder(out):
        folder = open_folder(out)
        for split in folder.splits.keys() & {*splits}:
            raise UserError(f"{out}: already has a {split!r} split; choose another folder")
        if tokenizer is not None and folder.tokenizer.fingerprint != tokenizer.fingerprint:
            raise UserError(f"{out}: its shards were made with another tokenizer; choose another folder")
    # A new volume has lost+found.
    elif out.exists() and not (out.is_dir() and all(name.startswith((".", "lost+found")) for name in os.listdir(out))):
        raise UserError(f"{out}: exists and is not a folder of jepamba shards; choose another folder")


def _batches(
    documents: Iterable[tuple[str, str]],
) -> Iterator[list[tuple[str, str]] | tuple[str, Iterator[str]]]:
    """Group `documents`, divided at NUL, into batches. A document as long as a batch comes alone, in its pieces."""
    batch: list[tuple[str, str]] = []
    size = 0
    for _, items in groupby(_divided_at_nul(documents), key=_Numbers()):
        pieces = list(islice(items, 2))
        split, text = pieces[0]
        if len(pieces) > 1 or len(text) >= BATCH_CHARS:
            if batch:
                yield batch
            yield split, (piece for _, piece in chain(pieces, items))
            batch, size = [], 0
            continue
        batch.append((split, text))
        size += len(text)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


class _Numbers:
    """Numbers the documents of a stream of pieces."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, item: tuple[str, str]) -> int:
        self.number += not isinstance(item[1], Continuation)
        return self.number


def _divided_at_nul(documents: Iterable[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    for split, document in documents:
        if isinstance(document, Continuation):
            yield split, document
        else:
            yield from ((split, text) for text in document.split("\0") if text)
