"""Text of any data set on the Hugging Face hub, named `hf://owner/name[@revision][/folder][:split]`.

Files come one by one while they are read, into the cache of huggingface_hub, where a second pass finds them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from jepamba.data.hub import HubFile, Repository, ask_for_room, total_size
from jepamba.errors import UserError
from jepamba.progress import Report
from jepamba.text.documents import read_files

HUB = "hf://"
"""What the name of such a text starts with."""
_NAME = re.compile(r"hf://([^/@:]+/[^/@:]+)(?:@([^/:]+))?(?:/([^:]*))?(?::([A-Za-z0-9_]+))?")
_READ = re.compile(r"\.(parquet|(jsonl|ndjson)(\.(gz|xz|zst))?)$")
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval"},
}
"""Words in the path of a file that say which split it is of, by the split's name: the hub's own convention,
https://huggingface.co/docs/hub/datasets-file-names-and-splits."""


class HubText:
    """The parquet and JSONL files of one split of a data set, at one commit.

    Arguments: `name`, as above; without a split, `train`, or all files of a data set whose paths name no split; without
    a folder, the files must lie in one. Raises `UserError` if there are no such files, naming what there is.
    """

    def __init__(self, name: str) -> None:
        match = _NAME.fullmatch(name)
        if match is None:
            raise UserError(f"{name}: not the name of a data set; give hf://owner/name[@revision][/folder][:split]")
        repository, revision, folder, split = match.groups()
        self.name, self.repository = name, Repository(repository, revision or "main")
        self.files = self._chosen((folder or "").strip("/"), split)

    def documents(self, column: str, progress: Report | None = None) -> Iterator[str]:
        """The documents, in the order of the files' paths; as `read_documents` gives those of a local folder.

        Raises `UserError` as that does, if a file cannot be fetched, or if the disk has no room for those to come.
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
        ask_for_room(total_size(missing), Path(constants.HF_HUB_CACHE), f"{len(missing)} files of {self.repository}")
        total = total_size(self.files)
        return read_files(self.name, self._arriving(total, progress), total, column, progress)

    def identity(self) -> list[Any]:
        """What decides the documents."""
        return [self.repository.name, self.repository.commit, *(file.path for file in self.files)]

    def _arriving(self, total: int, progress: Report | None) -> Iterator[Path]:
        before = 0
        for file in self.files:
            come = 0

            def arrived(count: int, before: int = before, file: HubFile = file) -> None:
                nonlocal come
                come += count
                if progress is not None:
                    progress(before, max(total, 1), f"fetching {file.path}, {come / 1e6:,.0f} MB")

            yield self.repository.fetch(file, arrived=arrived)
            before += file.size

    def _chosen(self, folder: str, split: str | None) -> tuple[HubFile, ...]:
        inside = f"{folder}/" if folder else ""
        readable = sorted(
            (file for path, file in self.repository.files.items() if path.startswith(inside) and _READ.search(path)),
            key=lambda file: file.path.split("/"),
        )
        if not readable:
            raise UserError(f"{self.name}: no parquet or JSONL file there; folders are {self._folders() or 'none'}")
        splits = {file.path: _split_of(file.path.removeprefix(inside), split) for file in readable}
        wanted = split or "train"
        if split is None and not any(splits.values()):
            chosen = readable
        else:
            wanted = next((name for name, words in _SPLITS.items() if wanted in words), wanted)
            chosen = [file for file in readable if splits[file.path] == wanted]
        if not chosen:
            there = ", ".join(sorted(set(filter(None, splits.values())))) or "none"
            raise UserError(f"{self.name}: no file of the split {wanted!r}; splits are {there}: add :SPLIT to the name")
        parents = {file.path.rpartition("/")[0] for file in chosen}
        if not folder and len(parents) > 1:
            raise UserError(
                f"{self.name}: its files lie in several folders, which may be different data: name one, as in "
                f"{HUB}{self.repository.name}/{min(parents)}; there are {self._folders()}"
            )
        return tuple(chosen)

    def _folders(self) -> str:
        """The first of the folders that have files to read."""
        found = sorted({path.rpartition("/")[0] for path in self.repository.files if _READ.search(path)} - {""})
        return ", ".join(found[:8]) + (f" and {len(found) - 8} more" if len(found) > 8 else "")


@lru_cache(maxsize=16)
def hub_text(name: str) -> HubText:
    """`HubText(name)`, asked for once in a process, so that all passes read the same commit."""
    return HubText(name)


def _split_of(path: str, asked: str | None) -> str:
    """The split that a word in `path` names, from its end; empty if none does."""
    for word in reversed(re.split(r"[^A-Za-z0-9]+", path)):
        for split, words in _SPLITS.items():
            if word in words:
                return split
        if asked is not None and word == asked:
            return asked
    return ""
