"""Lists and downloads the files of a data set or a model of the Hugging Face hub, at one commit.

Every request goes through huggingface_hub, with its cache, retries, range requests, access tokens and `HF_ENDPOINT`.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jepamba.errors import UserError
from jepamba.io import sha256_of
from jepamba.progress import Report

Kind = Literal["dataset", "model"]
_KINDS: dict[Kind, str] = {"dataset": "data set", "model": "model"}


@dataclass(frozen=True)
class HubFile:
    """A file of a repository."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """SHA-256 of the content, in hex. Empty for small files, for which the hub does not list it."""


class Repository:
    """A data set or a model of the hub, fixed to the current commit of `revision`.

    Arguments: `name`: "owner/name"; `revision`: a branch, a tag or a commit; `kind`: what it is. The constructor and
    every method raise `UserError` with the answer of the hub if a request fails, or if the hub cannot be reached.
    """

    def __init__(self, name: str, revision: str = "main", kind: Kind = "dataset") -> None:
        from huggingface_hub import HfApi, constants
        from huggingface_hub.hf_api import RepoFile

        # huggingface_hub retries broken connections. This class reports the final error in one line.
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        self.name, self.kind, self.endpoint = name, kind, constants.ENDPOINT
        if name.count("/") != 1 or not all(name.split("/")):
            raise UserError(f"{name!r}: not the name of a {_KINDS[kind]} on the hub; give owner/name")
        with self._as_user_errors(f"revision {revision!r}"):
            api = HfApi()
            self.commit = str(api.repo_info(name, revision=revision, repo_type=kind).sha)
            tree = api.list_repo_tree(name, recursive=True, revision=self.commit, repo_type=kind)
            found = [entry for entry in tree if isinstance(entry, RepoFile)]
        self.files = {
            entry.path: HubFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs is not None else "")
            for entry in found
        }
        """The files by path."""

    def __str__(self) -> str:
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def fetch(self, file: HubFile, folder: Path | None = None, on_bytes: Callable[[int], None] | None = None) -> Path:
        """Download `file` to `folder`, or to the cache of huggingface_hub, and return its path.

        A download resumes after a broken connection. Arguments: `on_bytes`: called with the number of bytes of each
        chunk. Raises `UserError` with the file name if the download fails. If size or SHA-256 differ from the hub's
        listing, the file is deleted before.
        """
        from huggingface_hub import hf_hub_download

        with self._as_user_errors(file.path):
            place = hf_hub_download(
                self.name,
                file.path,
                repo_type=self.kind,
                revision=self.commit,
                local_dir=folder,
                tqdm_class=_progress_class(on_bytes),
            )
        path = Path(place)
        mismatch = _mismatch(path, file)
        if mismatch:
            path.resolve().unlink()
            path.unlink(missing_ok=True)
            raise UserError(
                f"{self}: {file.path}: {mismatch}; the file was deleted, run the same command to download it again"
            )
        return path

    @contextmanager
    def _as_user_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        # huggingface_hub raises its own errors and those of its HTTP client, which differs between major versions.
        except Exception as error:
            raise UserError(f"{self}: {what}: {hub_reason(error, self.kind)}") from error


def hub_reason(error: Exception, kind: Kind) -> str:
    """Say in one line why a request for a repository of this `kind` failed."""
    from huggingface_hub import errors

    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, so nothing is downloaded"
    if isinstance(error, errors.GatedRepoError):
        return "the owner must grant access; then set HF_TOKEN"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no such {_KINDS[kind]}, or it is private (then set HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return "there is no such revision"
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return "there is no such file"
    status = http_status(error)
    if status is not None:
        return f"the hub answered {status}; try again later, or another mirror (HF_ENDPOINT)"
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return f"{error.filename}: {error.strerror}; choose another folder (HF_HOME, if it is the cache)"
    if isinstance(error, OSError) and error.errno is not None:
        return str(error.strerror)
    reason = " ".join(str(_first_cause(error)).split())
    if "Consistency check failed" in reason:
        return "the download has another length than the hub says; run the same command to download it again"
    return (
        f"the hub cannot be reached, or the connection broke too often ({reason[:120] or type(error).__name__}); "
        "run the same command to download the missing files, or set HF_ENDPOINT to a mirror"
    )


def check_free_space(size: int, folder: Path, what: str) -> None:
    """Raise `UserError` if the disk of `folder` has less than `size` free bytes. `folder` may not exist yet."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if size > free:
        raise UserError(f"{what} need {size / 1e9:.2f} GB, but {place} has {free / 1e9:.2f} GB free; free some space")


class DownloadProgress:
    """Reports the progress of a download of `total` bytes."""

    def __init__(self, total: int, progress: Report | None) -> None:
        self.total, self.progress = total, progress
        self.done = 0

    def __call__(self, count: int) -> None:
        """Add `count` downloaded bytes."""
        self.done += count
        if self.progress is not None:
            self.progress(self.done, max(self.total, 1), f"{self.done / 1e6:,.0f} of {self.total / 1e6:,.0f} MB")


def total_size(files: Iterable[HubFile]) -> int:
    """Return the size of all `files` in bytes."""
    return sum(file.size for file in files)


def http_status(error: BaseException | None) -> int | None:
    """Return the HTTP status that caused `error`, or None."""
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


def _mismatch(path: Path, file: HubFile) -> str:
    """Describe how the file at `path` differs from `file`. Returns an empty text if it does not."""
    size = os.path.getsize(path)
    if size != file.size:
        return f"the file has {size:,} bytes, the hub says {file.size:,}"
    if not file.sha256:
        return ""
    same = sha256_of(path, "the download") == file.sha256
    return "" if same else "its content differs from the hub (SHA-256 differs)"


def _progress_class(on_bytes: Callable[[int], None] | None) -> Any:
    """Return a subclass of tqdm that prints nothing and calls `on_bytes`."""
    from tqdm import tqdm

    class CallbackBar(tqdm):  # type: ignore[misc]  # the library has no types
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            if on_bytes is not None and n:
                on_bytes(int(n))
            return None

        def update_transfer(self, n: float | None = 1) -> None:
            """Ignore the bytes on the network, because `update` also counts them as bytes of the file.

            Without this method, huggingface_hub would create two bars.
            """

        def set_transfer_postfix_str(self, *args: Any, **kwargs: Any) -> None:
            pass

    return CallbackBar
