"""Finds validation text that is training text too."""

from __future__ import annotations

import os
from collections.abc import Hashable, Iterable, Sequence

from jepamba.config import Data
from jepamba.data.build import inventory
from jepamba.data.hub_text import commit_of, pinned
from jepamba.hub_names import HUB
from jepamba.text.documents import STDLIB


def shared_files(train: Iterable[str], val: str) -> dict[str, int]:
    """Return the files of `val` that a path of `train` has too, with their bytes. Both are text or shards.

    Files are equal if they are one file on disk, or one of a commit on the hub. If the hub is not asked, as when a run
    resumes, equal names are equal files.
    """
    known = {identity for path in train for identity, _, _ in _files(path, "train")}
    return {name: size for identity, name, size in _files(val, "val") if identity in known}


def trained_on(config: Data) -> list[str]:
    """Return the names of the files of `config.val` that `config.train` has too."""
    return list(shared_files([config.train], config.val)) if config.val else []


def shared_in_words(names: Sequence[str]) -> str:
    """Describe the `shared_files` for a message."""
    return (
        f"{len(names):,} files of the validation text are in the training text too, so their score is too good; "
        f"first, {names[0]}"
    )


def _files(path: str, split: str) -> list[tuple[Hashable, str, int]]:
    """The identity, name and bytes of each file that is read of `path`."""
    if path == STDLIB:
        return [(STDLIB, STDLIB, 1)]
    read = inventory(path, split).read
    if not path.startswith(HUB):
        return [((status.st_dev, status.st_ino), name, size) for name, size in read for status in [os.stat(name)]]
    name = pinned(path, split)
    return [((commit_of(name), file), f"{path}: {file}", size) for file, size in read] or [(name, path, 1)]
