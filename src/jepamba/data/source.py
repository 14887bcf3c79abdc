"""Raw text as a source of documents with an identity and a held-out part, and the cache of what was made of it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jepamba.data.hub_text import HUB, hub_text
from jepamba.errors import UserError
from jepamba.progress import Report
from jepamba.text.documents import STDLIB, read_documents, source_files
from jepamba.text.embedded import stdlib_identity
from jepamba.text.protocol import utf8


@dataclass(frozen=True)
class Source:
    """Documents at `path` (see `read_documents`; or `hf://…`, see `HubText`), all of one split or with a part held out.

    Arguments: `holdout`, the share of documents that are kept out for validation; 0: all belong to `split`.
    """

    path: str
    column: str
    split: str = "train"
    holdout: float = 0.0

    def documents(self, progress: Report | None = None) -> Iterator[tuple[str, str]]:
        """(split, text) of every document, in order.

        Which documents are held out depends on their text alone, not on any seed or order, so that all runs on the same
        text are comparable: of all distinct documents, the `holdout` with the smallest hashes. Copies of a document
        fall on one side. Raises `UserError` as reading does, and if there are no two documents to split.
        """
        if not self.holdout:
            for text in self._texts(progress):
                yield self.split, text
            return
        last = self._last_held_out(progress)
        for text in self._texts(progress):
            yield ("val" if _rank(text) <= last else "train"), text

    def _texts(self, progress: Report | None) -> Iterator[str]:
        if self.path.startswith(HUB):
            return hub_text(self.path).documents(self.column, progress)
        return read_documents(self.path, self.column, progress)

    def _last_held_out(self, progress: Report | None) -> int:
        """The largest hash of a held-out document."""
        ranks = np.fromiter((_rank(text) for text in self._texts(progress)), dtype=np.uint64)
        distinct = np.unique(ranks)
        if distinct.size < 2:
            raise UserError(
                f"{self.path}: only one document, none can be held out for validation; give data.val, more files, or "
                "separate documents by NUL bytes"
            )
        held = min(max(round(self.holdout * distinct.size), 1), distinct.size - 1)
        return int(distinct[held - 1])

    def identity(self) -> dict[str, Any]:
        """What decides the documents and their split: the files' paths, sizes and times of change (on the hub: the
        repository, its commit and the paths), and the settings."""
        if self.path == STDLIB:
            files: list[Any] = [stdlib_identity()]
        elif self.path.startswith(HUB):
            files = hub_text(self.path).identity()
        else:
            files = [
                [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in source_files(self.path)
            ]
        return {"files": files, "column": self.column, "split": self.split, "holdout": self.holdout}


def _rank(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(utf8(text), digest_size=8, key=b"jepamba holdout").digest(), "big")


def cache_folder(setting: str) -> Path:
    """`setting`, or where it is empty `$XDG_CACHE_HOME/jepamba`, or `~/.cache/jepamba`."""
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "jepamba"


def cache_key(values: dict[str, Any]) -> str:
    """A name for what `values` (plain JSON) decide."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
