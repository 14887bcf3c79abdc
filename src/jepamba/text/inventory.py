"""Lists what a path holds: the files that are read, and those that are left out, each with its reason."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath

from jepamba.errors import UserError
from jepamba.hub_names import refuse_mistyped
from jepamba.text.content import content_of
from jepamba.text.files import CODECS

DEFAULT_SPLITS = ("train", "validation")
"""The splits that are read unless a user names one; data without splits is read whole for these."""
JSON_LINES = (".jsonl", ".ndjson")
_SPLITS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval"},
}
"""For each split, the words that select it in the path of a file. This is the convention of the hub,
https://huggingface.co/docs/hub/datasets-file-names-and-splits."""
_ABOUT = re.compile(r"(readme|licen[cs]e|citation|dataset_card)\b.*|dataset_infos?\.json|state\.json", re.IGNORECASE)
"""Files that describe the parquet and JSON lines files beside them."""
_NO_TEXT = {
    ".csv": "a table; convert it to JSON lines or parquet",
    ".tsv": "a table; convert it to JSON lines or parquet",
    ".arrow": "an Arrow file; convert it to parquet (Dataset.to_parquet of the library datasets)",
    ".feather": "an Arrow file; convert it to parquet",
    ".bin": "a token shard, not text; set the data path to the folder of shards or to the file itself",
    ".tar": "an archive; unpack it into a folder",
    ".tgz": "an archive; unpack it into a folder",
    ".zip": "an archive; unpack it into a folder",
    ".7z": "an archive; unpack it into a folder",
    ".bz2": "bzip2 files are not supported; use .xz, .gz or .zst",
}
"""Suffixes that are refused, and why."""
_BINARY = {
    ".jepa": "an artifact",
    ".model": "a tokenizer",
    ".safetensors": "tensors",
    ".pyc": "compiled code",
    ".jpc": "a text that `compress` made",
}
_EXAMPLES = 3


@dataclass(frozen=True)
class Inventory:
    """The files of a source of text."""

    read: tuple[tuple[str, int], ...]
    """Name and size in bytes of each file, in the order of reading."""
    left_out: tuple[tuple[str, str], ...] = ()
    """Name and reason of each file or folder that is not read."""

    def rows(self, name: str) -> list[str]:
        """Format the inventory as rows of a table: name, files, bytes, and what becomes of them."""
        forms = Counter(form_of(Path(file)) or "no suffix" for file, _ in self.read)
        listed = ", ".join(f"{form} {count:,}" for form, count in sorted(forms.items()))
        size = f"{sum(size for _, size in self.read):,}"
        rows = [_row(name, len(self.read), size, f"read: {listed}")] if self.read else []
        for reason in dict.fromkeys(reason for _, reason in self.left_out):
            names = [file for file, why in self.left_out if why == reason]
            more = f" and {len(names) - _EXAMPLES:,} more" if len(names) > _EXAMPLES else ""
            shown = ", ".join(names[:_EXAMPLES])
            rows.append(_row(name, len(names), "", f"left out, {reason}: {shown}{more}"))
        return rows


def table(inventories: Mapping[str, Inventory]) -> str:
    """Format `inventories`, by the names of their text, as one table. It is empty if they list no file."""
    rows = [row for name, inventory in inventories.items() for row in inventory.rows(name)]
    return "\n".join(rows and [f"{'text':<12}{'files':>9}{'bytes':>16}", *rows])


def _row(name: str, count: int, size: str, what: str) -> str:
    return f"{name:<12}{count:>9,}{size:>16}  {what}"


def take_inventory(path: str | Path, split: str = "train") -> Inventory:
    """List the files of `path`, a file or a folder, in sorted order.

    A folder is read with all folders below it, linked ones too. Left out are hidden files, links to nothing or to what
    is read already, folders that cannot be read, and folders that jepamba wrote. If names tell splits apart, as in a
    data set of the hub, only the files of `split` and those of no split are read. Beside parquet or JSON lines files,
    a README and JSON of another form are left out.

    Raises `UserError` if there is nothing to read, if a file is no text by its name, or if `path` is a run.
    """
    root = Path(path)
    if root.is_file():
        _refuse_no_text(root)
        return Inventory(((str(root), root.stat().st_size),))
    if not root.is_dir():
        refuse_mistyped(path)
        if root.exists():
            raise UserError(f"{path}: a pipe or a device, which can be read once only; write its text to a file")
        raise UserError(f"{path}: no such file or folder")
    made = _made_here({entry.name for entry in os.scandir(root)})
    if made in ("a run", "a model for transformers"):
        raise UserError(f"{path}: the folder of {made}, not text")
    left_out: list[tuple[str, str]] = []
    found = list(_walk(root, {_identity(root.stat()), *_own_output()}, left_out))
    names = {file: str(file.relative_to(root)) for file in found}
    splits = {file: split_of(name, split) for file, name in names.items()}
    wanted = canonical_split(split)
    _refuse_missing_split(root, wanted, set(splits.values()) - {""})
    if wanted in splits.values():
        left_out += [(names[file], f"split {splits[file]}") for file in found if splits[file] not in ("", wanted)]
        found = [file for file in found if splits[file] in ("", wanted)]
    if any(_is_table(file) for file in found):
        reasons = {file: _no_table(file) for file in found}
        left_out += [(names[file], reason) for file, reason in reasons.items() if reason]
        found = [file for file, reason in reasons.items() if not reason]
    for file in found:
        _refuse_no_text(file)
    if not found:
        listed = "; ".join(f"{name} is left out, {why}" for name, why in left_out[:_EXAMPLES])
        raise UserError(f"{path}: empty folder{f' ({listed})' if listed else ''}; put text files into it")
    return Inventory(tuple((str(file), file.stat().st_size) for file in found), tuple(left_out))


def _refuse_missing_split(root: Path, wanted: str, named: set[str]) -> None:
    """Raise `UserError` if `root` lacks a split that was asked for, or if training text would take its place."""
    if wanted in named or split_of(root.resolve().name, wanted) == wanted:
        return
    if wanted not in DEFAULT_SPLITS or (wanted == "validation" and ("train" in named or len(named) > 1)):
        raise UserError(
            f"{root}: no file of the split {wanted!r}; by the names of the files, splits are "
            f"{', '.join(sorted(named)) or 'none'}: name a file or folder in it, or another split (eval --split)"
        )


def canonical_split(split: str) -> str:
    """Return the split of the hub that `split` means, for example "validation" for "val"."""
    return next((name for name, words in _SPLITS.items() if split in words), split)


def split_of(path: str, requested: str = "") -> str:
    """Return the split of the last word in `path` that names one, or an empty text. `requested` names one too."""
    for word in reversed(re.split(r"[^A-Za-z0-9]+", path)):
        name = canonical_split(word)
        if name in _SPLITS or (word and word == requested):
            return name
    return ""


def _walk(folder: Path, seen: set[tuple[int, int]], left_out: list[tuple[str, str]], below: str = "") -> Iterator[Path]:
    """Yield the files in `folder` and below it, sorted by the parts of their paths. `seen` are the known inodes."""
    for name in sorted(os.listdir(folder)):
        path, relative = folder / name, f"{below}{name}"
        reason = ""
        try:
            status = path.stat()
            if name.startswith("."):
                reason = "hidden"
            elif not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
                reason = "neither a file nor a folder"
            elif _identity(status) in seen:
                reason = "read already, or the output of this command"
            elif stat.S_ISDIR(status.st_mode):
                reason = _made_here(set(os.listdir(path)))
            elif not os.access(path, os.R_OK):
                reason = f"cannot be read ({os.strerror(errno.EACCES)})"
            else:
                reason = _BINARY.get(path.suffix.lower(), "")
        except OSError as error:
            reason = "a link to nothing" if path.is_symlink() else f"cannot be read ({error.strerror})"
        if reason:
            left_out.append((relative, reason))
            continue
        seen.add(_identity(status))
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(path, seen, left_out, f"{relative}/")
        else:
            yield path


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _own_output() -> Iterator[tuple[int, int]]:
    """The files to which standard output and standard error are redirected: they grow while they are read."""
    for descriptor in (1, 2):
        try:
            yield _identity(os.fstat(descriptor))
        except OSError:
            continue


def _made_here(names: set[str]) -> str:
    """Say what jepamba wrote to a folder with these `names`. Returns an empty text if it is another folder."""
    if {"config.toml", "metrics.jsonl"} <= names:
        return "a run"
    if {"config.json", "modeling_jepamba.py"} <= names:
        return "a model for transformers"
    if {"config.toml", "submission.json"} <= names:
        return "a submission"
    if "plan.toml" in names:
        return "a study"
    if any(name.endswith(".bin") and ("_train_" in name or "_val_" in name or "meta.json" in names) for name in names):
        return "shards of tokens"
    return ""


def form_of(file: PurePath) -> str:
    """The suffix of the content: that of the name without the suffix of a compression."""
    suffix = file.suffix.lower()
    return Path(file.stem).suffix.lower() if suffix in CODECS else suffix


def _refuse_no_text(file: Path) -> None:
    form = form_of(file)
    if form in _NO_TEXT:
        raise UserError(f"{file}: {_NO_TEXT[form]}")
    if form == ".parquet" and file.suffix.lower() in CODECS:
        raise UserError(f"{file}: a compressed parquet file; decompress it, parquet has its own compression")
    content_of(file, form)


def _no_table(file: Path) -> str:
    """Say why `file` is left out beside parquet and JSON lines files. Returns an empty text if it is read."""
    if _ABOUT.fullmatch(file.name):
        return "describes the data"
    if form_of(file) in _NO_TEXT:
        return "no text"
    return "JSON, but not one object a line" if form_of(file) == ".json" and not _is_table(file) else ""


def _is_table(file: Path) -> bool:
    """Whether `file` is parquet or JSON lines, by its name or its content."""
    form = form_of(file)
    if form != ".json":
        return form in (".parquet", *JSON_LINES)
    try:
        return content_of(file, form) == "rows"
    except UserError:
        return False
