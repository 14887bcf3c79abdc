"""A source of documents with a validation split and an identity, which is the key of the token cache."""

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
    """The documents of a path, in one split or divided into train and val.

    Arguments: `path`: a local path (see `read_documents`) or `hf://…` (see `HubText`); `column`: the text column;
    `split`: the split of all documents if `holdout` is 0; `holdout`: fraction of the documents in val.
    """

    path: str
    column: str
    split: str = "train"
    holdout: float = 0.0

    def documents(self, progress: Report | None = None) -> Iterator[tuple[str, str]]:
        """Iterate over (split, text) of every document, in order.

        The validation documents are the fraction `holdout` of the distinct documents with the smallest hashes. The
        split depends only on the text, so runs with different seeds are comparable, and copies of a document share a
        split. Raises `UserError` if reading fails, or if there is only one distinct document to split.
        """
        if not self.holdout:
            for text in self._texts(progress):
                yield self.split, text
            return
        threshold = self._holdout_threshold(progress)
        for text in self._texts(progress):
            yield ("val" if _holdout_hash(text) <= threshold else "train"), text

    def _texts(self, progress: Report | None) -> Iterator[str]:
        if self.path.startswith(HUB):
            return hub_text(self.path).documents(self.column, progress)
        return read_documents(self.path, self.column, progress)

    def _holdout_threshold(self, progress: Report | None) -> int:
        """Return the largest hash of a validation document."""
        hashes = np.fromiter((_holdout_hash(text) for text in self._texts(progress)), dtype=np.uint64)
        distinct = np.unique(hashes)
        if distinct.size < 2:
            raise UserError(
                f"{self.path}: only one document, none can be held out for validation; set data.val, add files, or "
                "separate documents by NUL bytes"
            )
        held = min(max(round(self.holdout * distinct.size), 1), distinct.size - 1)
        return int(distinct[held - 1])

    def identity(self) -> dict[str, Any]:
        """Return what determines the documents and their split.

        This is path, size and modification time of each file (on the hub: repository, commit and paths), and the
        settings.
        """
        if self.path == STDLIB:
            files: list[Any] = [stdlib_identity()]
        elif self.path.startswith(HUB):
            files = hub_text(self.path).identity()
        else:
            files = [
                [str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in source_files(self.path)
            ]
        return {"files": files, "column": self.column, "split": self.split, "holdout": self.holdout}


def _holdout_hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(utf8(text), digest_size=8, key=b"jepamba holdout").digest(), "big")


def cache_folder(setting: str) -> Path:
    """Return `setting`; if it is empty, `$XDG_CACHE_HOME/jepamba` or `~/.cache/jepamba`."""
    if setting:
        return Path(setting)
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base else Path.home() / ".cache") / "jepamba"


def cache_key(values: dict[str, Any]) -> str:
    """Return a hash of `values` (plain JSON) as a file name."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
