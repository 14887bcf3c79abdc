"""Downloads published FineWeb shards from the Hugging Face hub into one folder, and checks them.

Repositories have different folder layouts. Shards are found by file name, `fineweb_train_000000.bin`. If a repository
has several vocabularies, the suffix of the folder name, `…_sp8192`, selects one.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from jepamba.data.folder import META, TOKENIZER_FILE, Split, TokenFolder, describe, is_folder, open_folder
from jepamba.data.hub import DownloadProgress, HubFile, Repository, check_free_space, total_size
from jepamba.data.shards import open_shard
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.io import atomic_write, read_untrusted, unwritable
from jepamba.progress import Report
from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer

SOURCE = "source.json"
"""The file that records the repository and the commit of the shards in a folder."""
_SHARD = re.compile(r"fineweb_(train|val)_(\d+)\.bin")


@dataclass(frozen=True)
class Variant:
    """Where to find one tokenization of FineWeb."""

    repository: str
    """Default repository."""
    suffix: str
    """Suffix of the name of the shard folder, if a repository has several."""
    tokenizer: str
    """File name of the tokenizer, or empty for bytes."""
    alternatives: tuple[str, ...] = ()
    """Other repositories with the same shards."""


VARIANTS: Mapping[str, Variant] = {
    "sp8192": Variant(
        "willdepueoai/parameter-golf",
        "_sp8192",
        "fineweb_8192_bpe.model",
        ("kevclark/parameter-golf", "sproos/parameter-golf-tokenizers"),
    ),
    "bytes": Variant("mistobaan/fineweb10B_bytes", "bytes", ""),
}


@dataclass(frozen=True)
class FileSelection:
    """The files to download into one folder."""

    train: tuple[HubFile, ...]
    val: tuple[HubFile, ...]
    tokenizer: HubFile | None

    @property
    def files(self) -> tuple[HubFile, ...]:
        """All files; the tokenizer and the validation shards come first."""
        return (*([] if self.tokenizer is None else [self.tokenizer]), *self.val, *self.train)


def fetch_fineweb(
    variant: str, shards: int, out: Path, repository: str = "", revision: str = "", progress: Report | None = None
) -> TokenFolder:
    """Download the first `shards` training shards of FineWeb, all validation shards and the tokenizer into `out`.

    All files are of one repository at one commit. `meta.json` is written last; with it, `data.train` can use the
    folder. A repeated call keeps the files that are present and downloads the missing ones of the same commit. It can
    also add shards to a complete folder. Without validation shards in the repository, the folder has no `val` split.

    Arguments: `variant`: a key of `VARIANTS`; `repository`, `revision`: override the default repository and the commit
    recorded in `out`. Raises `UserError` with the name of the file, the repository or the folder.
    """
    if shards < 1:
        raise UserError(f"{shards} shards: training needs at least one")
    recorded = _read_source(out, variant)
    name = repository or recorded.get("repository", "") or VARIANTS[variant].repository
    if recorded and name != recorded["repository"]:
        raise UserError(f"{out}: its files are of {recorded['repository']}; choose another folder for those of {name}")
    source = Repository(name, revision or recorded.get("commit", "") or "main")
    if recorded and source.commit != recorded["commit"]:
        raise UserError(
            f"{out}: its files are of commit {recorded['commit'][:12]}; choose another folder for {revision}"
        )
    selection = select_files(source, variant, shards)
    missing = [file for file in selection.files if not _is_downloaded(out, file)]
    check_free_space(total_size(missing), out, f"{len(missing)} files of {source}")
    try:
        with locked(out):
            atomic_write(out / SOURCE, _source_json(variant, source).encode())
            return _download(source, selection, missing, out, variant, progress)
    except OSError as error:
        raise unwritable(Path(error.filename or out), error) from error


def select_files(source: Repository, variant: str, shards: int) -> FileSelection:
    """Select the files of `source` for `variant` with `shards` training shards.

    Raises `UserError` with the name of a missing file, or with the folders if the choice is ambiguous.
    """
    wanted = VARIANTS[variant]
    folders: dict[str, dict[str, dict[int, HubFile]]] = {}
    for file in source.files.values():
        parent, _, name = file.path.rpartition("/")
        if match := _SHARD.fullmatch(name):
            folders.setdefault(parent, {"train": {}, "val": {}})[match[1]][int(match[2])] = file
    matching = [parent for parent in folders if parent.endswith(wanted.suffix)]
    if not matching and set(folders) == {""}:
        matching = [""]
    if len(matching) != 1:
        candidates = ", ".join(sorted(name or "the top folder" for name in matching or folders)) or "none"
        raise UserError(
            f"{source}: {'several folders' if matching else 'no folder'} of fineweb shards whose name ends with "
            f"{wanted.suffix!r}; found {candidates}{_hint(wanted)}"
        )
    found, folder = folders[matching[0]], matching[0]
    tokenizers = [path for path in source.files if path.rpartition("/")[2] == wanted.tokenizer]
    if wanted.tokenizer and len(tokenizers) != 1:
        number = f"{len(tokenizers)} files" if tokenizers else "no file"
        raise UserError(f"{source}: {number} named {wanted.tokenizer}, the tokenizer of the shards{_hint(wanted)}")
    first = min(found["train"], default=0)
    return FileSelection(
        _consecutive_shards(source, found["train"], folder, "train", first, shards),
        _consecutive_shards(source, found["val"], folder, "val", min(found["val"], default=0), len(found["val"])),
        source.files[tokenizers[0]] if tokenizers else None,
    )


def _hint(wanted: Variant) -> str:
    return (
        f"; set --repo to another repository, such as {' or '.join(wanted.alternatives)}" if wanted.alternatives else ""
    )


def _consecutive_shards(
    source: Repository, found: dict[int, HubFile], folder: str, split: str, first: int, count: int
) -> tuple[HubFile, ...]:
    for number in range(first, first + count):
        if number not in found:
            raise UserError(
                f"{source}: {_shard_path(folder, split, number)}: there is no such file; "
                f"the repository has {len(found)} shards of {split}, {count} were requested"
            )
    return tuple(found[number] for number in range(first, first + count))


def _shard_path(folder: str, split: str, number: int) -> str:
    return f"{folder}/fineweb_{split}_{number:06d}.bin".removeprefix("/")


def _read_source(out: Path, variant: str) -> dict[str, str]:
    """Read the repository and the commit that `out` records. Returns {} if `out` is new or empty."""
    if not (out / SOURCE).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is not a folder of FineWeb shards; choose another folder")
        return {}
    try:
        source = json.loads(read_untrusted(out / SOURCE, "the source of the shards", 1 << 16))
        texts = {key: source[key] for key in ("repository", "commit", "variant")}
    except (ValueError, KeyError, TypeError, RecursionError):
        raise UserError(f"{out / SOURCE}: damaged; delete it and the shards beside it") from None
    if not all(isinstance(text, str) for text in texts.values()):
        raise UserError(f"{out / SOURCE}: damaged; delete it and the shards beside it")
    if texts["variant"] != variant:
        raise UserError(f"{out}: holds the variant {texts['variant']!r}; choose another folder for {variant!r}")
    return texts


def _source_json(variant: str, source: Repository) -> str:
    values = {"repository": source.name, "commit": source.commit, "variant": variant, "endpoint": source.endpoint}
    return json.dumps(values, indent=2) + "\n"


def _local(out: Path, file: HubFile) -> Path:
    name = file.path.rpartition("/")[2]
    return out / (TOKENIZER_FILE["sentencepiece"] if name.endswith(".model") else name)


def _is_downloaded(out: Path, file: HubFile) -> bool:
    """Whether `out` has `file` with its size and a valid header. The earlier call checked its content."""
    path = _local(out, file)
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    try:
        if path.suffix == ".bin":
            open_shard(path, 1 << 16)
    except UserError:
        return False
    return True


def _download(
    source: Repository,
    selection: FileSelection,
    missing: list[HubFile],
    out: Path,
    variant: str,
    progress: Report | None,
) -> TokenFolder:
    download_progress = DownloadProgress(total_size(missing), progress)
    incoming = out / ".incoming"
    tokenizer: Tokenizer = ByteTokenizer(separator=False)
    # The tokenizer comes first because every shard is checked against its vocabulary.
    for file in selection.files:
        place = _local(out, file)
        if file in missing:
            fetched = source.fetch(file, incoming, download_progress)
            _check_download(fetched, file, tokenizer, source)
            os.replace(fetched, place)
        if file is selection.tokenizer:
            tokenizer = read_tokenizer(place)
    shutil.rmtree(incoming, ignore_errors=True)
    files_of = {"train": selection.train, "val": selection.val}
    splits = {name: _split(out, files, tokenizer) for name, files in files_of.items() if files}
    if is_folder(out):
        # A call for fewer shards than are present removes none.
        old = open_folder(out).splits["train"]
        splits["train"] = old if len(old.shards) > len(selection.train) else splits["train"]
    atomic_write(out / TOKENIZER_FILE[tokenizer.kind], tokenizer.serialize())
    atomic_write(out / META, describe(tokenizer, splits).encode())
    return open_folder(out)


def _check_download(fetched: Path, file: HubFile, tokenizer: Tokenizer, source: Repository) -> None:
    """Remove a downloaded file that is not a valid shard or tokenizer, and raise `UserError` with its name."""
    try:
        if file.path.endswith(".model"):
            read_tokenizer(fetched)
        else:
            open_shard(fetched, tokenizer.vocab_size, whole=True)
    except UserError as error:
        fetched.unlink()
        reason = str(error).removeprefix(f"{fetched}: ")
        raise UserError(f"{source}: {file.path} is damaged in the repository: {reason}") from None


def _split(out: Path, files: tuple[HubFile, ...], tokenizer: Tokenizer) -> Split:
    """Describe `files` as a split. Counts of the original text are unknown."""
    names = [_local(out, file).name for file in files]
    shards = [open_shard(out / name, tokenizer.vocab_size) for name in names]
    return Split(documents=None, text_bytes=None, decoded_bytes=None, tokens=sum(map(len, shards)), shards=tuple(names))
