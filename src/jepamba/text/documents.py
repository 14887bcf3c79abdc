"""Reads documents from text files, JSONL, parquet, folders of these, and the Python standard library."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.progress import Report
from jepamba.text.embedded import stdlib_documents
from jepamba.text.files import CODECS, ReadCallback, read_blocks

STDLIB = "stdlib"
"""The path that selects the English text of the Python standard library."""

_JSONL = (".jsonl", ".ndjson")
_NO_TEXT = {
    ".bin": "a token shard, not text; set the data path to the folder of shards or to the file itself",
    ".tar": "an archive; unpack it into a folder",
    ".tgz": "an archive; unpack it into a folder",
    ".zip": "an archive; unpack it into a folder",
    ".7z": "an archive; unpack it into a folder",
    ".bz2": "bzip2 files are not supported; use .xz, .gz or .zst",
}


def read_documents(path: str | Path, column: str = "text", progress: Report | None = None) -> Iterator[str]:
    """Iterate over the documents of `path` in a fixed order.

    In a .jsonl, .ndjson or .parquet file, `column` of each row is a document. Any other file is UTF-8 text. All files
    except parquet can be compressed as .xz, .gz or .zst. A NUL ends a document; a text file without a NUL is one
    document. The reader skips empty documents and a byte-order mark at the start of a file.

    Arguments: `path`: "stdlib", a file, or a folder, which is read recursively in sorted order without hidden files;
    `column`: the text column; `progress`: receives the bytes read.

    Raises `UserError` at the call if `path` does not exist. Raises `UserError` with file and line during iteration if a
    file is damaged, is not UTF-8 or lacks the column, or if there is no document.
    """
    if str(path) == STDLIB:
        return iter([text for _, text in stdlib_documents()])
    files = source_files(path)
    return read_files(path, files, sum(file.stat().st_size for file in files), column, progress)


def source_files(path: str | Path) -> list[Path]:
    """List the files that `read_documents(path)` reads, in order. Raises `UserError` if there are none."""
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
        raise UserError(f"{path}: empty folder; put text files into it")
    return files


def read_files(
    name: str | Path, files: Iterable[Path], total: int, column: str, progress: Report | None = None
) -> Iterator[str]:
    """Iterate over the documents of `files`, which can be a lazy iterable; see `read_documents`.

    Arguments: `name`: the name of the source in errors; `total`: size of all files in bytes.
    """
    before, found = 0, False
    for file in files:
        start = before

        def on_read(position: int, start: int = start) -> None:
            if progress is not None:
                progress(start + position, max(total, 1))

        for text in _texts(file, column, on_read):
            for document in text.split("\0"):
                if document:
                    found = True
                    yield document
        before += file.stat().st_size
    if not found:
        raise UserError(f"{name}: empty, it contains no text")


def _texts(file: Path, column: str, on_read: ReadCallback) -> Iterator[str]:
    compressed = file.suffix.lower() in CODECS
    form = Path(file.stem).suffix.lower() if compressed else file.suffix.lower()
    if form in _NO_TEXT:
        raise UserError(f"{file}: {_NO_TEXT[form]}")
    if form == ".parquet":
        if compressed:
            raise UserError(f"{file}: a compressed parquet file; decompress it, parquet has its own compression")
        return _parquet(file, column, on_read)
    return _jsonl(file, column, on_read) if form in _JSONL else _plain(file, on_read)


def _split(file: Path, separator: bytes, on_read: ReadCallback) -> Iterator[bytes]:
    """Split the content of `file` at `separator`."""
    pending: list[bytes] = []
    for block in read_blocks(file, on_read):
        *ended, rest = block.split(separator)
        for part in ended:
            yield b"".join([*pending, part])
            pending = []
        pending.append(rest)
    yield b"".join(pending)


def _plain(file: Path, on_read: ReadCallback) -> Iterator[str]:
    line = 1
    for index, raw in enumerate(_split(file, b"\0", on_read)):
        yield _decoded(raw, file, line, first=index == 0)
        line += raw.count(b"\n")


def _decoded(raw: bytes, file: Path, line: int, first: bool) -> str:
    """Decode `raw`, which starts on `line` of `file`; if `first`, drop a byte-order mark."""
    try:
        return raw.decode("utf-8-sig" if first else "utf-8")
    except UnicodeDecodeError as error:
        at = line + error.object[: error.start].count(b"\n")
        bad = error.object[error.start]
        raise UserError(f"{file}, line {at}: not UTF-8 (byte 0x{bad:02X}); convert the file to UTF-8") from None


def _jsonl(file: Path, column: str, on_read: ReadCallback) -> Iterator[str]:
    for line, raw in enumerate(_split(file, b"\n", on_read), start=1):
        text = _decoded(raw, file, line, first=line == 1)
        if text.strip():
            yield _field(text, column, f"{file}, line {line}")


def _field(line: str, column: str, where: str) -> str:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not JSON ({error})") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: not a JSON object but {_json_type(row)}; each line is an object with a text column")
    if column not in row:
        raise UserError(f"{where}: no column {column!r}; the columns are {_column_list(row)} (set data.column)")
    value = row[column]
    if not isinstance(value, str):
        raise UserError(f"{where}: column {column!r} is {_json_type(value)}, not a string")
    if any("\ud800" <= character <= "\udfff" for character in value) if not value.isascii() else False:
        raise UserError(f"{where}: column {column!r} contains half a surrogate pair, which has no UTF-8 form")
    return value


def _json_type(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        list: "a list",
        dict: "an object",
    }
    return names.get(type(value), "a string")


def _column_list(columns: Any) -> str:
    names = [repr(str(name)[:40]) for name in columns]
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"


def _parquet(file: Path, column: str, on_read: ReadCallback) -> Iterator[str]:
    # Imported here because the import takes 0.3 s and most runs read no parquet.
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as table:
            schema = table.schema_arrow
            if column not in schema.names:
                raise UserError(
                    f"{file}: no column {column!r}; the columns are {_column_list(schema.names)} (set data.column)"
                )
            if schema.names.count(column) > 1:
                raise UserError(
                    f"{file}: {schema.names.count(column)} columns are named {column!r}; rename all but one"
                )
            kind = schema.field(column).type
            if pyarrow.types.is_dictionary(kind):
                kind = kind.value_type
            types = pyarrow.types
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise UserError(f"{file}: column {column!r} is {kind}, not a string")
            size = file.stat().st_size
            rows = max(table.metadata.num_rows, 1)
            done = 0
            for batch in table.iter_batches(batch_size=256, columns=[column]):
                # A name with a dot also selects a field of a nested column, so the batch may have more columns.
                yield from (text for text in batch.column(column).to_pylist() if text is not None)
                done += batch.num_rows
                on_read(size * done // rows)
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: damaged parquet file ({' '.join(str(error).split())})") from None
