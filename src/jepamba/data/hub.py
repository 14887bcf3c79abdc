"""One data set of the Hugging Face hub, at one revision: the files that it has, and how they come here.

All of it goes through huggingface_hub: its cache, its retries and ranges, its tokens and its `HF_ENDPOINT`.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.progress import Report

_AT_ONCE = 1 << 22


@dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """Of its content, in hexadecimal digits; empty where the hub does not say (it does for large files)."""


class Repository:
    """A data set of the hub at the commit that `revision` names now; what is fetched is of this commit alone.

    Arguments: `name`, "owner/name"; `revision`, a branch, a tag or a commit. Raises `UserError`, as every method, in
    one line that says what the hub answered, or that it cannot be reached.
    """

    def __init__(self, name: str, revision: str = "main") -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.hf_api import RepoFile

        # Broken connections are retried; what comes of it is said in one line, here.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.name, self.endpoint = name, constants.ENDPOINT
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"{name!r}: not the name of a data set on the hub; give owner/name")
        with self._asking(f"revision {revision!r}"):
            api = HfApi()
            self.commit = str(api.dataset_info(name, revision=revision).sha)
            tree = api.list_repo_tree(name, recursive=True, revision=self.commit, repo_type="dataset")
            found = [entry for entry in tree if isinstance(entry, RepoFile)]
        self.files = {
            entry.path: HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs is not None else "")
            for entry in found
        }
        """By their paths."""

    def __str__(self) -> str:
        return f"{self.endpoint}/datasets/{self.name}"

    def fetch(self, file: HubFile, folder: Path | None = None, arrived: Callable[[int], None] | None = None) -> Path:
        """Where `file` lies once it is here: under `folder`, or in the cache of huggingface_hub.

        A connection that breaks is taken up again where it broke. Arguments: `arrived` hears of bytes as they come.
        Raises `UserError` naming the file if it cannot be had, or is not what the hub says it is; it is gone then.
        """
        from huggingface_hub import hf_hub_download

        with self._asking(file.path):
            place = hf_hub_download(
                self.name,
                file.path,
                repo_type="dataset",
                revision=self.commit,
                local_dir=folder,
                tqdm_class=_telling(arrived),
            )
        path = Path(place)
        wrong = _difference(path, file)
        if wrong:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise UserError(f"{self}: {file.path}: {wrong}; it is removed, the same command fetches it again")
        return path

    @contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        try:
            yield
        # Whatever the library raises: its own errors, and those of the HTTP client below it, which is another in
        # each of its major versions.
        except Exception as error:
            raise UserError(f"{self}: {what}: {self._reason(error)}") from error

    def _reason(self, error: Exception) -> str:
        from huggingface_hub import errors

        if isinstance(error, errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set, so nothing is fetched"
        if isinstance(error, errors.GatedRepoError):
            return "its owner must grant access first; then set HF_TOKEN"
        if isinstance(error, errors.RepositoryNotFoundError):
            return "there is no such data set, or it is private (set HF_TOKEN then)"
        if isinstance(error, errors.RevisionNotFoundError):
            return "there is no such revision"
        if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
            return "there is no such file"
        status = _status(error)
        if status is not None:
            return f"the hub answered {status}; try again later, or another mirror (HF_ENDPOINT)"
        if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
            return f"{error.filename}: {error.strerror}"
        if isinstance(error, OSError) and error.errno is not None:
            return str(error.strerror)
        said = " ".join(str(_first_cause(error)).split())
        if "Consistency check failed" in said:
            return "it came with another length than the hub says; the same command fetches it again"
        return (
            f"the hub cannot be reached, or the connection broke too often ({said[:120] or type(error).__name__}); "
            "the same command goes on with what is missing, and HF_ENDPOINT names a mirror"
        )


def ask_for_room(size: int, folder: Path, what: str) -> None:
    """Raise `UserError` unless `size` bytes more fit on the disk of `folder`, which need not be there yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(f"{what} need {size / 1e9:.2f} GB, but {place} has {free / 1e9:.2f} GB free; make room there")


class Arrivals:
    """Turns bytes that arrive into progress: `total` bytes are awaited."""

    def __init__(self, total: int, progress: Report | None) -> None:
        self.total, self.progress = total, progress
        self.done = 0

    def __call__(self, count: int) -> None:
        """`count` bytes more."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, max(self.total, 1), f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


def total_size(files: Iterable[HubFile]) -> int:
    """Bytes of all `files`."""
    return sum(file.size for file in files)


def _status(error: BaseException | None) -> int | None:
    """The HTTP status that is behind `error`."""
    while error is not None:
        status = getattr(getattr(error, "response", None), "status_code", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _difference(path: Path, file: HubFile) -> str:
    """In what the file at `path` is not `file`; empty if it is."""
    size = os.path.getsize(path)
    if size != file.size:
        return f"it has {size:,} bytes, the hub says {file.size:,}"
    if not file.sha256:
        return ""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_AT_ONCE):
            digest.update(block)
    return "" if digest.hexdigest() == file.sha256 else "its content is not what the hub has (SHA-256 differs)"


def _telling(arrived: Callable[[int], None] | None) -> Any:
    """A class like tqdm's, which draws nothing and passes on what arrives."""
    from tqdm import tqdm

    class Telling(tqdm):  # type: ignore[misc]  # the library has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if arrived is not None and n:
                arrived(int(n))
            return None

        def update_transfer(self, n: float | None = 1) -> None:
            """Bytes on the wire, which come a second time as bytes of the file: with this method, the library tells
            one bar of both instead of making two."""

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

    return Telling
