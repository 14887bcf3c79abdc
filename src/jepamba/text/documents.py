"""Documents out of text files, JSONL, parquet, folders of these, and the text inside Python itself."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.progress import Report
from jepamba.text.embedded import stdlib_documents
from jepamba.text.files import CODECS, Seen, read_blocks

STDLIB = "stdlib"
"""The name that stands for the English inside Python."""

_JSONL = (".jsonl", ".ndjson")
_NO_TEXT = {
    ".bin": "a shard of tokens among text files; give the folder of shards, or the file itself, as the data",
    ".tar": "an archive; unpack it into a folder",
    ".tgz": "an archive; unpack it into a folder",
    ".zip": "an archive; unpack it into a folder",
    ".7z": "an archive; unpack it into a folder",
    ".bz2": "compressed with bzip2, which is not read; use .xz, .gz or .zst",
}


def read_documents(path: str | Path, column: str = "text", progress: Report | None = None) -> Iterator[str]:
    """The documents of `path`, one by one, in a fixed order.

    Arguments: `path`, "stdlib", a file, or a folder, which is read with its folders in sorted order, hidden files left
    out. A .jsonl (.ndjson) or .parquet file has a document in `column` of each row; any other file is UTF-8 text. All
    but parquet may be packed as .xz, .gz or .zst. A NUL ends a document wherever it stands; a text file without one is
    one document. Empty documents are skipped, and a byte-order mark at a file's start. `progress` hears of bytes read.

    Raises `UserError`, at once if `path` is not there, while reading if a file is damaged, not UTF-8, or lacks the
    column, or no document is found at all; the message names file and line.
    """
    if str(path) == STDLIB:
        return iter([text for _, text in stdlib_documents()])
    files = source_files(path)
    return read_files(path, files, sum(file.stat().st_size for file in files), column, progress)


def source_files(path: str | Path) -> list[Path]:
    """The files that `read_documents(path)` reads, in order. Raises `UserError` if there are none."""
    root = Path(path)
    if root.is_file():
        return [root]
    if not root.is_dir():
        raise UserError(f"{path}: no such file or folder")
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    files = sorted((file for file in found if file.is_file()), key=lambda file: file.relative_to(root).parts)
    if not files:
        raise UserError(f"{path}: an empty folder; put text files into it")
    return files


def read_files(
    name: str | Path, files: Iterable[Path], total: int, column: str, progress: Report | None = None
) -> Iterator[str]:
    """The documents of `files`, which may come one by one, as `read_documents` reads them.

    Arguments: `name`, what the files are together; `total`, their bytes.
    """
    before, found = 0, False
    for file in files:
        start = before

        def seen(position: int, start: int = start) -> None:
            if progress is not None:
                progress(start + position, max(total, 1))

        for text in _texts(file, column, seen):
            for document in text.split("\0"):
                if document:
                    found = True
                    yield document
        before += file.stat().st_size
    if not found:
        raise UserError(f"{name}: empty, there is no text in it")


def _texts(file: Path, column: str, seen: Seen) -> Iterator[str]:
    packed = file.suffix.lower() in CODECS
    form = Path(file.stem).suffix.lower() if packed else file.suffix.lower()
    if form in _NO_TEXT:
        raise UserError(f"{file}: {_NO_TEXT[form]}")
    if form == ".parquet":
        if packed:
            raise UserError(f"{file}: a packed parquet file; unpack it, parquet is compressed inside")
        return _parquet(file, column, seen)
    return _jsonl(file, column, seen) if form in _JSONL else _plain(file, seen)


def _split(file: Path, separator: bytes, seen: Seen) -> Iterator[bytes]:
    """The content of `file` between separators, the last part too."""
    pending: list[bytes] = []
    for block in read_blocks(file, seen):
        *ended, rest = block.split(separator)
        for part in ended:
            yield b"".join([*pending, part])
            pending = []
        pending.append(rest)
    yield b"".join(pending)


def _plain(file: Path, seen: Seen) -> Iterator[str]:
    line = 1
    for index, raw in enumerate(_split(file, b"\0", seen)):
        yield _decoded(raw, file, line, first=index == 0)
        line += raw.count(b"\n")


def _decoded(raw: bytes, file: Path, line: int, first: bool) -> str:
    """`raw`, which starts on `line` of `file`, as text; `first`, at the file's start, may have a byte-order mark."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        at = line + error.object[: error.start].count(b"\n")
        bad = error.object[error.start]
        raise UserError(f"{file}, line {at}: not UTF-8 (byte 0x{bad:02X}); convert the file to UTF-8") from None


def _jsonl(file: Path, column: str, seen: Seen) -> Iterator[str]:
    for line, raw in enumerate(_split(file, b"\n", seen), start=1):
        text = _decoded(raw, file, line, first=line == 1)
        if text.strip():
            yield _field(text, column, f"{file}, line {line}")


def _field(line: str, column: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object but {_kind(row)}; each line is an object with a text column")
    if column not in row:
        raise UserError(f"{where}: no column {column!r}; there are {_listed(row)} (set data.column)")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} is {_kind(value)}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else False:
        raise UserError(f"{where}: column {column!r} holds half a surrogate pair, which is no text")
    return value


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a string")


def _listed(columns: Any) -> str:
    names = [repr(str(name)[:40]) for name in columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _parquet(file: Path, column: str, seen: Seen) -> Iterator[str]:
    # Only here: it takes a third of a second to import, and most runs read no parquet.
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise UserError(f"{file}: no column {column!r}; there are {_listed(schema.names)} (set data.column)")
            kind = schema.field(column).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            if not (pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind)):
                raise UserError(f"{file}: column {column!r} is {kind}, not a string")
            size = file.stat().st_size
            rows = max(table.metadata.num_rows, 1)
            done = 0
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
                done += batch.num_rows
                seen(size * done // rows)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: damaged parquet file ({' '.join(str(error).split())})") from None
