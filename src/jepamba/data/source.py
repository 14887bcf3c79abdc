"""A source of documents with a validation split and an identity, which is the key of the token cache."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from jepamba.data.hub_text import hub_inventory, hub_text, pinned
from jepamba.errors import UserError
from jepamba.hub_names import HUB
from jepamba.io import make_private_again, make_private_folder
from jepamba.progress import Report, print_line
from jepamba.text.documents import STDLIB, BadRows, check_column, joined, read_pieces
from jepamba.text.embedded import stdlib_identity
from jepamba.text.inventory import Inventory, take_inventory
from jepamba.text.near_duplicates import HeldOut, NothingHeldOutError, OneDocumentError, divided, hold_out, hold_out_end
from jepamba.text.protocol import Continuation


@dataclass
class Source:
    """The documents of one or more paths, in one split or divided into train and val.

    Arguments: `paths`: local paths (see `read_pieces`) or `hf://…` (see `HubText`); `column`: the text column;
    `split`: the split of all documents if `holdout` is 0, and the one that is read of files whose names tell splits
    apart; `holdout`: fraction of the documents in val; `skip_bad`: bad rows that may be left out.
    """

    paths: tuple[str, ...]
    column: str
    split: str = "train"
    holdout: float = 0.0
    skip_bad: int = 0
    bad_rows: BadRows = field(init=False, compare=False)
    """The bad rows of the present or last pass over the documents."""
    _held_out: HeldOut | None = field(default=None, init=False, repr=False, compare=False)
    _end: int | None = field(default=None, init=False, repr=False, compare=False)
    """Of a single document, the character at which the held-out text starts."""

    def __post_init__(self) -> None:
        self.bad_rows = BadRows(self.skip_bad)

    def documents(self, progress: Report | None = None) -> Iterator[tuple[str, str]]:
        """Iterate over (split, text) of every document, in order, each as a whole; see `pieces`."""
        for split, pieces in groupby(self.pieces(progress), key=itemgetter(0)):
            for document in joined(text for _, text in pieces):
                yield split, document

    def pieces(self, progress: Report | None = None) -> Iterator[tuple[str, str]]:
        """Iterate over (split, text) of every document, in order, a long one in pieces; see `read_pieces`.

        The validation documents are those that `held_out` selects. Raises `UserError` if reading fails.
        """
        in_order = self.held_out(progress).in_order if self.holdout else None
        index = -1
        for text in self._texts(progress):
            if in_order is None:
                yield self.split, text
                continue
            index += not isinstance(text, Continuation)
            if index == len(in_order):
                raise UserError(f"{', '.join(self.paths)}: changed while it was read; start again")
            yield "val" if in_order[index] else "train", text

    def held_out(self, progress: Report | None = None) -> HeldOut:
        """Select the validation documents; see `hold_out`. The first call reads all documents.

        The end of a single document is held out; it then counts as two.
        """
        if self._held_out is None:
            try:
                try:
                    self._held_out = hold_out(self._texts(progress), self.holdout)
                except OneDocumentError:
                    if not self.is_one_document():  # but copies of it
                        raise
                    self._end, self._held_out = hold_out_end(lambda: self._whole_texts(progress), self.holdout)
            except NothingHeldOutError as error:
                raise UserError(
                    f"{', '.join(self.paths)}: {error}; set data.val, add files, or separate documents by NUL bytes"
                ) from None
        return self._held_out

    def is_one_document(self) -> bool:
        """Whether there is a single document, whose end is held out."""
        starts = (1 for text in self._whole_texts(None) if not isinstance(text, Continuation))
        return sum(islice(starts, 2)) == 1

    def _texts(self, progress: Report | None) -> Iterator[str]:
        texts = self._whole_texts(progress)
        return texts if self._end is None else divided(texts, self._end)

    def _whole_texts(self, progress: Report | None) -> Iterator[str]:
        self.bad_rows.restart()
        for path in self.paths:
            if path.startswith(HUB):
                yield from hub_text(path, self.split).documents(self.column, progress, self.bad_rows)
            else:
                yield from read_pieces(path, self.column, progress, split=self.split, bad_rows=self.bad_rows)

    def inventory(self) -> Inventory:
        """List the files that are read, and those that are not. Raises `UserError` if there is nothing to read."""
        return _joined([_inventory(path, self.split) for path in self.paths])

    def checked_inventory(self) -> Inventory:
        """Return `inventory()`. Raises `UserError` as well for a file that is named twice or lacks the column."""
        found = [_inventory(path, self.split) for path in self.paths]
        seen: set[tuple[int, int]] = set()
        for path, files in zip(self.paths, found, strict=True):
            for name, _ in () if path.startswith(HUB) else files.read:
                status = os.stat(name)
                if (status.st_dev, status.st_ino) in seen:
                    raise UserError(f"{path}: {name} would be read twice; name each file or folder once")
                seen.add((status.st_dev, status.st_ino))
                check_column(Path(name), self.column, self.skip_bad)
        return _joined(found)

    def identity(self) -> dict[str, Any]:
        """Return what determines the documents and their split.

        This is path, size and modification time of each file (on the hub: the name with its commit), and the
        settings.
        """
        files: list[Any] = []
        for path in self.paths:
            if path == STDLIB:
                files.append(stdlib_identity())
            elif path.startswith(HUB):
                files.append(pinned(path, self.split))
            else:
                found = [Path(name) for name, _ in take_inventory(path, self.split).read]
                files += [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in found]
        settings = {"column": self.column, "split": self.split, "holdout": self.holdout, "skip_bad": self.skip_bad}
        return {"files": files, **settings}


def _inventory(path: str, split: str) -> Inventory:
    if path == STDLIB:
        other = f"this name is the text in Python; ./{STDLIB} is the file or folder"
        return Inventory((), ((STDLIB, other),) if os.path.exists(STDLIB) else ())
    return hub_inventory(path, split) if path.startswith(HUB) else take_inventory(path, split)


def _joined(inventories: Sequence[Inventory]) -> Inventory:
    return Inventory(
        tuple(file for inventory in inventories for file in inventory.read),
        tuple(file for inventory in inventories for file in inventory.left_out),
    )


def cache_folder(setting: str) -> Path:
    """Return `setting`; if it is empty, `$XDG_CACHE_HOME/jepamba` or `~/.cache/jepamba`.

    Raises `UserError` if the user has no home folder, as in a container with a user number of its own.
    """
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "jepamba"
    except RuntimeError:
        raise UserError("there is no home folder for the cache; set HOME, XDG_CACHE_HOME or data.cache") from None


def private_cache_folder(setting: str, name: str) -> Path:
    """Return the folder `name` of the cache, for this user alone: tokens say what a private text says.

    Earlier versions left it open to others. In the default place it is closed; one that a setting names may be shared.
    Raises `UserError` if it cannot be created.
    """
    folder = cache_folder(setting) / name
    make_private_folder(folder)
    if not setting and make_private_again(folder):
        print_line(f"jepamba: others could read {folder}; now you alone can (data.cache names a folder to share)")
    return folder


def cache_key(values: dict[str, Any]) -> str:
    """Return a hash of `values` (plain JSON) as a file name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
