"""Reads the text of a data set on the Hugging Face hub, `hf://owner/name[@revision][/folder][:split]`.

Each file is downloaded when it is read, into the cache of huggingface_hub. A second pass reads from the cache.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from jepamba.data.hub import HubFile, Repository, check_free_space, total_size
from jepamba.errors import UserError
from jepamba.hub_names import HUB
from jepamba.progress import Report
from jepamba.text.documents import BadRows, read_files
from jepamba.text.inventory import DEFAULT_SPLITS, Inventory, canonical_split, split_of

_NAME = re.compile(r"hf://([^/@:]+/[^/@:]+)(?:@([^/:]+))?(?:/([^:]*))?(?::([A-Za-z0-9_]+))?")
COMMIT = re.compile(r"[0-9a-f]{40}")
_READABLE = re.compile(r"\.(parquet|(jsonl|ndjson)(\.(gz|xz|zst))?|json\.(gz|xz|zst))$")
"""A .json file without compression mostly describes the data."""

_inventories: dict[tuple[str, str], Inventory] = {}
"""By the name of the data set with its commit, and the split if the name has none."""


class HubText:
    """The parquet and JSONL files of one split of a data set, at one commit.

    Arguments: `name`: as above; `split`: the split if the name has none. If no path names a split, all files are read
    then. Without a folder in the name, all files must be in one folder. Raises `UserError` with the available names if
    no file matches.
    """

    def __init__(self, name: str, split: str = "train") -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name}: not the name of a data set; give hf://owner/name[@revision][/folder][:split]")
        repository, revision, folder, named = match.groups()
        self.name, self.repository = name, Repository(repository, revision or "main")
        self.files = self._select_files((folder or "").strip("/"), named, split)
        self.pinned = re.sub(r"^(hf://[^/@:]+/[^/@:]+)(@[^/:]+)?", rf"\1@{self.repository.commit}", name)
        _inventories[self.pinned, split] = self._inventory()

    def _inventory(self) -> Inventory:
        chosen = {file.path for file in self.files}
        left_out = [
            (path, f"split {split}" if (split := split_of(path)) and _READABLE.search(path) else "not in the data read")
            for path in sorted(self.repository.files.keys() - chosen)
        ]
        return Inventory(tuple((file.path, file.size) for file in self.files), tuple(left_out))

    def documents(self, column: str, progress: Report | None = None, bad_rows: BadRows | None = None) -> Iterator[str]:
        """Iterate over the documents, sorted by path, as `read_pieces` does for a local folder.

        Raises `UserError` as `read_pieces` does, if a download fails, or if the disk has too little space.
        """
        from huggingface_hub import constants, try_to_load_from_cache

        missing = [
            file
            for file in self.files
            if not isinstance(
                try_to_load_from_cache(
                    self.repository.name, file.path, revision=self.repository.commit, repo_type="dataset"
                ),
                str,
            )
        ]
        check_free_space(
            total_size(missing), Path(constants.HF_HUB_CACHE), f"{len(missing)} files of {self.repository}"
        )
        total = total_size(self.files)
        return read_files(self.name, self._downloaded_files(total, progress), total, column, progress, bad_rows)

    def _downloaded_files(self, total: int, progress: Report | None) -> Iterator[Path]:
        before = 0
        for file in self.files:
            downloaded = 0

            def on_bytes(count: int, before: int = before, file: HubFile = file) -> None:
                nonlocal downloaded
                downloaded += count
                if progress is not None:
                    progress(before, max(total, 1), f"downloading {file.path}, {downloaded / 1e6:,.0f} MB")

            yield self.repository.fetch(file, on_bytes=on_bytes)
            before += file.size

    def _select_files(self, folder: str, split: str | None, default: str) -> tuple[HubFile, ...]:
        inside = f"{folder}/" if folder else ""
        readable = sorted(
            (
                file
                for path, file in self.repository.files.items()
                if path.startswith(inside) and _READABLE.search(path)
            ),
            key=lambda file: file.path.split("/"),
        )
        if not readable:
            raise UserError(f"{self.name}: no parquet or JSONL file found; folders are {self._folders() or 'none'}")
        wanted = canonical_split(split or default)
        splits = {file.path: split_of(file.path.removeprefix(inside), split or default) for file in readable}
        if split is None and wanted in DEFAULT_SPLITS and not any(splits.values()):
            chosen = readable
        else:
            chosen = [file for file in readable if splits[file.path] == wanted]
        if not chosen:
            available = ", ".join(sorted(set(filter(None, splits.values())))) or "none"
            raise UserError(
                f"{self.name}: no file of the split {wanted!r}; splits are {available}: add :SPLIT to the name"
            )
        parents = {file.path.rpartition("/")[0] for file in chosen}
        if not folder and len(parents) > 1:
            raise UserError(
                f"{self.name}: its files are in several folders, which may be different data: name one, as in "
                f"{HUB}{self.repository.name}/{min(parents)}; folders are {self._folders()}"
            )
        return tuple(chosen)

    def _folders(self) -> str:
        """List up to 8 folders with readable files."""
        found = sorted({path.rpartition("/")[0] for path in self.repository.files if _READABLE.search(path)} - {""})
        return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


@lru_cache(maxsize=16)
def hub_text(name: str, split: str = "train") -> HubText:
    """Return `HubText(name, split)`, cached so that all passes of a process read the same commit."""
    return HubText(name, split)


def pinned(name: str, split: str = "train") -> str:
    """Return `name` with the present commit as its revision, which determines the text. Asks the hub unless it has one.

    Raises `UserError` as `HubText` does.
    """
    match = _NAME.fullmatch(name)
    if match is not None and COMMIT.fullmatch(match[2] or ""):
        return name
    return hub_text(name, split).pinned


def commit_of(pinned_name: str) -> str:
    """Return a name of `pinned` without folder and split."""
    return re.sub(r"(@[^/:]+).*", r"\1", pinned_name)


def hub_inventory(name: str, split: str = "train") -> Inventory:
    """List the files of `HubText(name, split)` that are read, and those that are not.

    A resumed run finds its tokens in the cache, without the hub.
    """
    return _inventories.get((pinned(name, split), split), Inventory(()))
