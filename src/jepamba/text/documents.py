"""Reads documents from text files, JSONL, parquet, folders of these, and the Python standard library."""

from __future__ import annotations

import codecs
import json
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, AnyStr

from jepamba.errors import UserError
from jepamba.progress import Report
from jepamba.text.content import content_of
from jepamba.text.embedded import stdlib_documents
from jepamba.text.files import ReadCallback, read_blocks
from jepamba.text.inventory import form_of, take_inventory
from jepamba.text.protocol import PIECE_CHARS, Continuation, sliced

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

STDLIB = "stdlib"
"""The path that selects the English text of the Python standard library."""


@dataclass
class BadRows:
    """Counts the bad rows and documents that a reader leaves out: at most `limit`."""

    limit: int = 0
    count: int = field(default=0, init=False)
    first: str = field(default="", init=False)
    """What is wrong with the first of them, with its file and line."""

    def restart(self) -> None:
        """Count a new pass."""
        self.count, self.first = 0, ""

    def leave_out(self, error: UserError, what: str = "row") -> None:
        """Count a bad row, or `what` else the file consists of. Raises `UserError` if it is one too many."""
        self.count += 1
        self.first = self.first or str(error)
        if self.count > self.limit:
            remedy = "; mend the row" if what == "row" else ""
            remedy = f"; this is bad {what} {self.count}, {self.limit} are allowed" if self.limit else remedy
            raise UserError(f"{error}{remedy} (data.skip_bad, or --skip-bad, leaves out a number of bad {what}s)")

    def in_words(self) -> str:
        """Describe the rows for a message. Returns an empty text if there is none."""
        return f"bad rows left out: {self.count:,}; first, {self.first}" if self.count else ""


def read_documents(
    path: str | Path,
    column: str = "text",
    progress: Report | None = None,
    *,
    split: str = "train",
    bad_rows: BadRows | None = None,
) -> Iterator[str]:
    """Iterate over the documents of `path` in a fixed order, each as a whole.

    In a .jsonl, .ndjson or .parquet file, `column` of each row is a document; so it is in any other file whose first
    line, or half of whose first 100 lines, are JSON objects. JSON of another form is refused. Any other file is UTF-8
    text. All files except parquet can be compressed as .xz, .gz or .zst. A NUL ends a document; a text file without a
    NUL is one document. The reader skips empty documents and a byte-order mark at the start of a file.

    Arguments: `path`: "stdlib", a file, or a folder, of which `take_inventory` lists the files that are read; `column`:
    the text column; `progress`: receives the bytes read; `split`: the split to read if the names of the files tell
    splits apart; `bad_rows`: counts the bad rows (default: none is allowed).

    Raises `UserError` at the call if `path` does not exist. Raises `UserError` with file and line during iteration if a
    file is damaged, is not UTF-8 or lacks the column, or if there is no document.
    """
    return joined(read_pieces(path, column, progress, split=split, bad_rows=bad_rows))


def joined(pieces: Iterable[str]) -> Iterator[str]:
    """Iterate over the documents, as wholes, of `pieces` from `read_pieces`."""
    document: list[str] = []
    for piece in pieces:
        if document and not isinstance(piece, Continuation):
            yield _taken(document, "")
        document.append(piece)
        del piece
    if document:
        yield _taken(document, "")


def read_pieces(
    path: str | Path,
    column: str = "text",
    progress: Report | None = None,
    *,
    split: str = "train",
    bad_rows: BadRows | None = None,
) -> Iterator[str]:
    """Iterate over the documents of `path`, a long one in pieces: the first, and then each a `Continuation`.

    The memory is that of a piece, unless bad rows are allowed: a document is left out as a whole. See `read_documents`.
    """
    if str(path) == STDLIB:
        return iter([text for _, text in stdlib_documents()])
    files = take_inventory(path, split).read
    return read_files(
        path, [Path(name) for name, _ in files], sum(size for _, size in files), column, progress, bad_rows
    )


def read_files(
    name: str | Path,
    files: Iterable[Path],
    total: int,
    column: str,
    progress: Report | None = None,
    bad_rows: BadRows | None = None,
) -> Iterator[str]:
    """Iterate over the documents of `files`, which can be a lazy iterable; see `read_pieces`.

    Arguments: `name`: the name of the source in errors; `total`: size of all files in bytes.
    """
    before, found, bad_rows = 0, False, bad_rows or BadRows()
    for file in files:
        start = before

        def on_read(position: int, start: int = start) -> None:
            if progress is not None:
                progress(start + position, max(total, 1))

        for text in _texts(file, column, on_read, bad_rows):
            if isinstance(text, Continuation):
                yield text
                continue
            for document in filter(None, text.split("\0")):
                found = True
                for index, piece in enumerate(sliced([document], PIECE_CHARS)):
                    yield Continuation(piece) if index else piece
        before += file.stat().st_size
    if not found:
        raise UserError(f"{name}: empty, it contains no text")


def check_column(file: Path, column: str, skip_bad: int) -> None:
    """Raise `UserError` if `file` is parquet without the text column, or rows whose first is bad and none may be."""
    content = content_of(file, form_of(file))
    if content == "parquet":
        with _opened(file, column):
            pass
    elif content == "rows" and not skip_bad:
        next(_jsonl(file, read_blocks(file), column, BadRows()), None)


def _texts(file: Path, column: str, on_read: ReadCallback, bad_rows: BadRows) -> Iterator[str]:
    content = content_of(file, form_of(file))
    if content == "parquet":
        return _parquet(file, column, on_read, bad_rows)
    blocks = read_blocks(file, on_read)
    return _jsonl(file, blocks, column, bad_rows) if content == "rows" else _plain(file, blocks, bad_rows)


def _split(blocks: Iterable[bytes], separator: bytes, size: int = sys.maxsize) -> Iterator[tuple[bytes, bool]]:
    """Split the content of `blocks` at `separator`, and parts of more than about `size` bytes into several.

    Yields each with whether it is the last of its part.
    """
    pending: list[bytes] = []
    held = 0
    for block in blocks:
        *ended, rest = block.split(separator)
        for part in ended:
            pending.append(part)
            yield _taken(pending, b""), True
            held = 0
        pending.append(rest)
        held += len(rest)
        if held >= size:
            yield _taken(pending, b""), False
            held = 0
    yield _taken(pending, b""), True


def _taken(parts: list[AnyStr], empty: AnyStr) -> AnyStr:
    """Join and empty `parts`, so that a long document is in memory once."""
    joined = empty.join(parts)
    parts.clear()
    return joined


def _plain(file: Path, blocks: Iterable[bytes], bad_rows: BadRows) -> Iterator[str]:
    # A document can only be left out before any of it is used.
    size = sys.maxsize if bad_rows.limit else PIECE_CHARS
    line, begun, decoder = 1, False, codecs.getincrementaldecoder("utf-8-sig")()
    for raw, is_last in _split(blocks, b"\0", size):
        start, line = line, line + raw.count(b"\n")
        try:
            text = _decoded(raw, file, start, decoder, is_last)
        except UserError as error:
            bad_rows.leave_out(error, "document")
            text = ""
        del raw  # a document may be long
        if text:
            yield Continuation(text) if begun else text
        begun = not is_last and (begun or bool(text))
        if is_last:
            decoder = codecs.getincrementaldecoder("utf-8")()


def _decoded(raw: bytes, file: Path, line: int, decoder: codecs.IncrementalDecoder, is_last: bool = True) -> str:
    """Decode `raw`, which starts on `line` of `file`."""
    try:
        return decoder.decode(raw, is_last)
    except UnicodeDecodeError as error:
        at = line + error.object[: error.start].count(b"\n")
        bad = error.object[error.start]
        raise UserError(
            f"{file}, line {at}: not UTF-8 (byte 0x{bad:02X}); if it is text, convert it to UTF-8"
        ) from None


def _jsonl(file: Path, blocks: Iterable[bytes], column: str, bad_rows: BadRows) -> Iterator[str]:
    for line, (raw, _) in enumerate(_split(blocks, b"\n"), start=1):
        try:
            decoder = codecs.getincrementaldecoder("utf-8-sig" if line == 1 else "utf-8")()
            text = _decoded(raw, file, line, decoder)
            if text.strip():
                yield _field(text, column, f"{file}, line {line}")
        except UserError as error:
            bad_rows.leave_out(error)


def _field(line: str, column: str, where: str) -> str:
    try:
        # Python refuses integers of more than 4,300 digits. None is text, so their values do not matter.
        row: Any = json.loads(line.strip(), parse_int=len)
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


@contextmanager
def _opened(file: Path, column: str) -> Iterator[ParquetFile]:
    """Open a parquet file with a text `column`. Raises `UserError` if it has none, and for damage while it is open."""
    # Imported here because the import takes 0.3 s and most runs read no parquet.
    import pyarrow
    from pyarrow import parquet, types

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
            if types.is_dictionary(kind):
                kind = kind.value_type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise UserError(f"{file}: column {column!r} is {kind}, not a string")
            yield table
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: damaged parquet file ({' '.join(str(error).split())})") from None


def _parquet(file: Path, column: str, on_read: ReadCallback, bad_rows: BadRows) -> Iterator[str]:
    with _opened(file, column) as table:
        size = file.stat().st_size
        rows = max(table.metadata.num_rows, 1)
        done = 0
        for batch in table.iter_batches(batch_size=256, columns=[column]):
            # A name with a dot also selects a field of a nested column, so the batch may have more columns.
            for row, value in enumerate(batch.column(column), start=done + 1):
                try:
                    text = value.as_py()
                    problem = "null, not a string" if text is None else ""
                except UnicodeDecodeError:
                    problem = "not UTF-8"
                if problem:
                    bad_rows.leave_out(UserError(f"{file}, row {row}: column {column!r} is {problem}"))
                else:
                    yield text
            done += batch.num_rows
            on_read(size * done // rows)
