"""Tells what a file holds from its first bytes: prose, rows of JSON, parquet, or what is no text."""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from functools import lru_cache
from pathlib import Path

from jepamba.errors import UserError
from jepamba.text.files import read_start

_MAGIC = {
    b"version https://git-lfs.github.com/spec/": (
        "only the name of its content in Git LFS; fetch the content with `git lfs pull`"
    ),
    b"\xff\xfe\0\0": "UTF-32; convert the file to UTF-8",
    b"\0\0\xfe\xff": "UTF-32; convert the file to UTF-8",
    b"\xff\xfe": "UTF-16; convert the file to UTF-8",
    b"\xfe\xff": "UTF-16; convert the file to UTF-8",
    b"PAR1": "a parquet file under another name; rename it to end in .parquet",
    b"ARROW1": "an Arrow file; convert it to parquet",
    b"\x1f\x8b": "a gzip file under another name; add .gz to its name",
    b"\x28\xb5\x2f\xfd": "a Zstandard file under another name; add .zst to its name",
    b"\xfd7zXZ\0": "an xz file under another name; add .xz to its name",
    b"BZh91AY&SY": "a bzip2 file; use .xz, .gz or .zst",
    b"PK\x03\x04": "a ZIP archive or an office document; unpack or convert it",
    b"7z\xbc\xaf\x27\x1c": "an archive; unpack it into a folder",
    b"Rar!\x1a\x07": "an archive; unpack it into a folder",
    b"%PDF-": "a PDF document; convert it to text",
    b"\x89PNG\r\n\x1a\n": "an image; move it elsewhere",
    b"\xff\xd8\xff": "an image; move it elsewhere",
    b"GIF89a": "an image; move it elsewhere",
    b"SQLite format 3\0": "a database; convert it to JSON lines or parquet",
    b"\x7fELF": "a program; move it elsewhere",
    b"\x89JPC\r\n\x1a\n": "a text that `compress` made; `jepamba decompress` restores it",
    b"\x89JPA\r\n\x1a\n": "an artifact, not text",
}
"""What a file is that begins so, and what to do."""
_CONTROLS = bytes([*range(1, 7), *range(14, 27)])
"""Control characters that text does not use: not NUL, bell, backspace, white space, escape and the separators."""
_ARRAY = re.compile(rb'\[\s*(\{\s*"(\\.|[^"\\\n])*"\s*:|"(\\.|[^"\\\n])*"\s*,\s*["\n])')
_OBJECT = re.compile(rb'\{\s*\n\s*"(\\.|[^"\\\n])*"\s*:')
_CUT_ROW = re.compile(rb'\{\s*"')
_LINES = 100


def content_of(file: Path, form: str) -> str:
    """Return "parquet", "rows" (a JSON object a line) or "text".

    Arguments: `form`: the suffix of the content, see `form_of`. Raises `UserError` with what the file is if it is none
    of these: another kind of file, another encoding, or JSON of another form.
    """
    status = file.stat()
    kind, problem = _content(file, form, status.st_size, status.st_mtime_ns)
    if problem:
        raise UserError(f"{file}: {problem}")
    return kind


@lru_cache(maxsize=1 << 16)
def _content(file: Path, form: str, size: int, modified: int) -> tuple[str, str]:
    """The content and what is wrong with it. The size and time of the file are for the cache."""
    raw = read_start(file, packed=True)
    if problem := _foreign(raw, 1):
        return "", problem
    if form == ".parquet":
        return "parquet", "" if raw.startswith(b"PAR1") else "damaged parquet file (it does not begin with PAR1)"
    start = read_start(file)
    if problem := _foreign(start) or _other_encoding(start):
        return "", problem
    shape = json_shape(start)
    if shape == "other" or (form == ".json" and shape != "rows" and start.strip()):
        return "", "JSON, but not one object a line; convert it (of an array: jq -c '.[]'), or move it elsewhere"
    return ("rows" if shape == "rows" or form in (".jsonl", ".ndjson") else "text"), ""


def _foreign(start: bytes, count: int | None = None) -> str:
    """Say what file begins with `start`, of the first `count` entries of `_MAGIC`; an empty text if none does."""
    return next((what for magic, what in list(_MAGIC.items())[:count] if start.startswith(magic)), "")


def _other_encoding(start: bytes) -> str:
    """Say that `start` is UTF-16 or binary; an empty text if it can be UTF-8 or another encoding of bytes."""
    controls = sum(start.count(byte) for byte in _CONTROLS)
    # ASCII as UTF-16 is single bytes with NULs between them; other alphabets are every second byte a control character.
    singles = sum(len(part) == 1 for part in start.split(b"\0"))
    if len(start) >= 64 and (controls + singles) * 5 > len(start):
        return "UTF-16 without a byte-order mark, or binary; convert the file to UTF-8, or move it elsewhere"
    try:
        codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        if controls * 50 > len(start):
            return "binary, not text; move it elsewhere"
    return ""


def json_shape(start: bytes) -> str:
    """Return "rows" if a file that begins with `start` has a JSON object a line, "other" if it is other JSON, or "".

    Its first line, or half of its first lines are objects: a bad or cut row does not make it prose.
    """
    start = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _ARRAY.match(start) or _OBJECT.match(start):
        return "other"
    *lines, last = start.split(b"\n", _LINES)
    shapes = [_line_shape(line) for line in lines if line.strip()]
    if len(lines) < _LINES and last.strip():
        # This line may be longer than what was read.
        shapes.append("rows" if _CUT_ROW.match(last) and not last.rstrip().endswith(b"}") else _line_shape(last))
    counts = Counter(shapes)
    if shapes and (shapes[0] == "rows" or 2 * counts["rows"] >= len(shapes)):
        return "rows"
    return "other" if shapes and 2 * counts["other"] > len(shapes) else ""


def _line_shape(line: bytes) -> str:
    line = line.strip(b" \t\r\x1e")
    if not line.startswith((b"{", b"[")):
        return ""
    try:
        value = json.loads(line, parse_int=len)
    except (ValueError, RecursionError):
        return ""
    if isinstance(value, dict):
        return "rows"
    return "other" if any(isinstance(item, str | dict) for item in value) else ""
