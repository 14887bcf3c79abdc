"""FineWeb as published shards (spec section 7): found in a repository of the hub, fetched, checked, put in one folder.

Repositories lay their files out in different ways. What counts is the name of a file, `fineweb_train_000000.bin`, and,
where a repository has several vocabularies, the end of the name of its folder, `…_sp8192`.
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
from jepamba.data.hub import Arrivals, HubFile, Repository, ask_for_room, total_size
from jepamba.data.shards import open_shard
from jepamba.errors import UserError
from jepamba.io import atomic_write, read_untrusted
from jepamba.progress import Report
from jepamba.text.tokenizers import ByteTokenizer, Tokenizer, read_tokenizer

SOURCE = "source.json"
"""Names the repository and the commit that a folder's files are of."""
_SHARD = re.compile(r"fineweb_(train|val)_(\d+)\.bin")


@dataclass(frozen=True)
class Variant:
    """How to find one tokenization of FineWeb."""

    repository: str
    """Where it is looked for unless another is named."""
    suffix: str
    """What the name of the shards' folder ends with, where a repository has several."""
    tokenizer: str
    """The file name of the tokenizer; empty for bytes."""
    others: tuple[str, ...] = ()
    """Other repositories that have it."""


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
class Choice:
    """The files of a repository that make one folder."""

    train: tuple[HubFile, ...]
    val: tuple[HubFile, ...]
    tokenizer: HubFile | None

    @property
    def files(self) -> tuple[HubFile, ...]:
        """All of them, the small ones first."""
        return (*([] if self.tokenizer is None else [self.tokenizer]), *self.val, *self.train)


def fetch_fineweb(
    variant: str, shards: int, out: Path, repository: str = "", revision: str = "", progress: Report | None = None
) -> TokenFolder:
    """The folder `out` with the first `shards` training shards of FineWeb, all of its validation, and the tokenizer;
    without a `val` split where the repository has none.

    All files are of one repository at one commit. The folder is for `data.train` once it has its `meta.json`, which is
    written last; until then a repeated call keeps the shards that have come and fetches the others, of the same commit.
    Also adds shards to a folder that is complete. Arguments: `variant`, a key of `VARIANTS`; `repository` and
    `revision`, in place of the published one and of what `out` was begun with. Raises `UserError` naming the file, the
    repository or the folder.
    """
    if shards < 1:
        raise UserError(f"{shards} shards: at least one is needed to train on")
    began = _began(out, variant)
    name = repository or began.get("repository", "") or VARIANTS[variant].repository
    if began and name != began["repository"]:
        raise UserError(f"{out}: its files are of {began['repository']}; choose another folder for those of {name}")
    source = Repository(name, revision or began.get("commit", "") or "main")
    if began and source.commit != began["commit"]:
        raise UserError(f"{out}: its files are of commit {began['commit'][:12]}; choose another folder for {revision}")
    choice = choose(source, variant, shards)
    missing = [file for file in choice.files if not _is_here(out, file)]
    ask_for_room(total_size(missing), out, f"{len(missing)} files of {source}")
    try:
        atomic_write(out / SOURCE, _source(variant, source).encode())
        return _filled(source, choice, missing, out, variant, progress)
    except OSError as error:
        raise UserError(f"{error.filename or out}: cannot be written ({error.strerror})") from error


def choose(source: Repository, variant: str, shards: int) -> Choice:
    """The files of `source` that make `variant` with `shards` training shards.

    Raises `UserError` naming what the repository lacks, or its folders if several could be meant.
    """
    wanted = VARIANTS[variant]
    folders: dict[str, dict[str, dict[int, HubFile]]] = {}
    for file in source.files.values():
        parent, _, name = file.path.rpartition("/")
        if match := _SHARD.fullmatch(name):
            folders.setdefault(parent, {"train": {}, "val": {}})[match[1]][int(match[2])] = file
    fitting = [parent for parent in folders if parent.endswith(wanted.suffix)]
    if not fitting and set(folders) == {""}:
        fitting = [""]
    if len(fitting) != 1:
        there = ", ".join(sorted(name or "the top folder" for name in fitting or folders)) or "none"
        raise UserError(
            f"{source}: {'several folders' if fitting else 'no folder'} of fineweb shards whose name ends with "
            f"{wanted.suffix!r}; there is {there}{_hint(wanted)}"
        )
    found, folder = folders[fitting[0]], fitting[0]
    tokenizers = [path for path in source.files if path.rpartition("/")[2] == wanted.tokenizer]
    if wanted.tokenizer and len(tokenizers) != 1:
        many = f"{len(tokenizers)} files" if tokenizers else "no file"
        raise UserError(f"{source}: {many} named {wanted.tokenizer}, the tokenizer of the shards{_hint(wanted)}")
    first = min(found["train"], default=0)
    return Choice(
        _in_order(source, found["train"], folder, "train", first, shards),
        _in_order(source, found["val"], folder, "val", min(found["val"], default=0), len(found["val"])),
        source.files[tokenizers[0]] if tokenizers else None,
    )


def _hint(wanted: Variant) -> str:
    return f"; --repo names another repository, as {' or '.join(wanted.others)}" if wanted.others else ""


def _in_order(
    source: Repository, found: dict[int, HubFile], folder: str, split: str, first: int, count: int
) -> tuple[HubFile, ...]:
    for number in range(first, first + count):
        if number not in found:
            raise UserError(
                f"{source}: {_path(folder, split, number)}: there is no such file; the repository has {len(found)} "
                f"shards of {split}, {count} are asked for"
            )
    return tuple(found[number] for number in range(first, first + count))


def _path(folder: str, split: str, number: int) -> str:
    return f"{folder}/fineweb_{split}_{number:06d}.bin".removeprefix("/")


def _began(out: Path, variant: str) -> dict[str, str]:
    """What `out` says of where its files are from; nothing if it is new or empty."""
    if not (out / SOURCE).exists():
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise UserError(f"{out}: exists and is no folder of FineWeb shards; choose another folder")
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


def _source(variant: str, source: Repository) -> str:
    values = {"repository": source.name, "commit": source.commit, "variant": variant, "endpoint": source.endpoint}
    return json.dumps(values, indent=2) + "\n"


def _local(out: Path, file: HubFile) -> Path:
    name = file.path.rpartition("/")[2]
    return out / (TOKENIZER_FILE["sentencepiece"] if name.endswith(".model") else name)


def _is_here(out: Path, file: HubFile) -> bool:
    """Whether `file` came in an earlier call, which checked it, and is still what it was as far as a glance tells."""
    path = _local(out, file)
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    try:
        if path.suffix == ".bin":
            open_shard(path, 1 << 16)
    except UserError:
        return False
    return True


def _filled(
    source: Repository, choice: Choice, missing: list[HubFile], out: Path, variant: str, progress: Report | None
) -> TokenFolder:
    arrivals = Arrivals(total_size(missing), progress)
    incoming = out / ".incoming"
    tokenizer: Tokenizer = ByteTokenizer(separator=False)
    # The tokenizer comes first: every shard is checked against its vocabulary.
    for file in choice.files:
        place = _local(out, file)
        if file in missing:
            fetched = source.fetch(file, incoming, arrivals)
            _check(fetched, file, tokenizer, source)
            os.replace(fetched, place)
        if file is choice.tokenizer:
            tokenizer = read_tokenizer(place)
    shutil.rmtree(incoming, ignore_errors=True)
    files_of = {"train": choice.train, "val": choice.val}
    splits = {name: _split(out, files, tokenizer) for name, files in files_of.items() if files}
    if is_folder(out):
        # A call for fewer shards than are there takes none away.
        old = open_folder(out).splits["train"]
        splits["train"] = old if len(old.shards) > len(choice.train) else splits["train"]
    atomic_write(out / TOKENIZER_FILE[tokenizer.kind], tokenizer.serialize())
    atomic_write(out / META, describe(tokenizer, splits).encode())
    return open_folder(out)


def _check(fetched: Path, file: HubFile, tokenizer: Tokenizer, source: Repository) -> None:
    """Raise `UserError` naming `file`, and remove it, if what was fetched is no shard, or no tokenizer."""
    try:
        if file.path.endswith(".model"):
            read_tokenizer(fetched)
        else:
            open_shard(fetched, tokenizer.vocab_size, whole=True)
    except UserError as error:
        fetched.unlink()
        said = str(error).removeprefix(f"{fetched}: ")
        raise UserError(f"{source}: {file.path} is damaged there: {said}") from None


def _split(out: Path, files: tuple[HubFile, ...], tokenizer: Tokenizer) -> Split:
    """The description of `files`; what nobody recorded of the original text stays open."""
    names = [_local(out, file).name for file in files]
    shards = [open_shard(out / name, tokenizer.vocab_size) for name in names]
    return Split(documents=None, text_bytes=None, decoded_bytes=None, tokens=sum(map(len, shards)), shards=tuple(names))
