"""Tests of document readers: every input format, and the errors for input without text."""

from __future__ import annotations

import gzip
import hashlib
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from examples import examples
from jepamba.errors import UserError
from jepamba.text import documents as documents_module
from jepamba.text import files as files_module
from jepamba.text import inventory, read_documents, stdlib_documents
from jepamba.text.documents import joined, read_pieces
from jepamba.text.embedded import stdlib_identity
from jepamba.text.inventory import take_inventory

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".xz": lzma.compress,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}
TEXTS = ["First document.\nIt has two lines.\n", "  naïve ☃ 😀\r\n\ttabs", "third"]


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(PACKERS[path.suffix if path.suffix in PACKERS else ""](content))
    return path


def refusal(path: Path | str, column: str = "text") -> str:
    with pytest.raises(UserError) as caught:
        list(read_documents(path, column))
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("packing", PACKERS)
def test_plain_text_is_split_at_nul(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"text.txt{packing}", "\0".join(TEXTS).encode())
    assert list(read_documents(path)) == TEXTS
    # A NUL at the end, or several in a row, makes no document.
    path = write(tmp_path / f"more.md{packing}", ("\0\0".join(TEXTS) + "\0").encode())
    assert list(read_documents(str(path))) == TEXTS


@pytest.mark.parametrize("packing", PACKERS)
def test_jsonl(tmp_path: Path, packing: str) -> None:
    rows = [{"id": i, "body": text} for i, text in enumerate([*TEXTS, "", "a\0b"])]
    lines = "\n".join(json.dumps(row) for row in rows) + "\n\n"
    path = write(tmp_path / f"rows.jsonl{packing}", lines.encode())
    assert list(read_documents(path, "body")) == [*TEXTS, "a", "b"]
    assert list(read_documents(path.rename(tmp_path / f"rows.ndjson{packing}"), "body")) == [*TEXTS, "a", "b"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
def test_parquet_in_row_groups(tmp_path: Path, kind: pyarrow.DataType) -> None:
    texts = [*TEXTS, "", "a\0b"] * 300
    table = pyarrow.table({"n": list(range(len(texts))), "text": pyarrow.array(texts, pyarrow.string()).cast(kind)})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=500)
    assert list(read_documents(tmp_path / "rows.parquet")) == [*TEXTS, "a", "b"] * 300
    assert "the columns are 'n', 'text'" in refusal(tmp_path / "rows.parquet", "body")
    assert "'n' is int64, not a string" in refusal(tmp_path / "rows.parquet", "n")


def test_folder_is_read_recursively_in_sorted_order(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", b"three")
    write(tmp_path / "a" / "z.txt", b"two")
    write(tmp_path / "a" / "c" / "rows.jsonl.xz", b'{"text": "one"}\n')
    write(tmp_path / "c.unknown.gz", b"four\0five")
    write(tmp_path / "empty.txt", b"")
    write(tmp_path / ".hidden", b"\xff")
    write(tmp_path / ".git" / "config", b"\xff")
    assert list(read_documents(tmp_path)) == ["one", "two", "three", "four", "five"]
    assert [Path(name).name for name, _ in take_inventory(tmp_path).read] == [
        "rows.jsonl.xz",
        "z.txt",
        "b.txt",
        "c.unknown.gz",
        "empty.txt",
    ]


def test_byte_order_mark_at_the_start_is_no_text(tmp_path: Path) -> None:
    assert list(read_documents(write(tmp_path / "a.txt", b"\xef\xbb\xbfa\0\xef\xbb\xbfb"))) == ["a", "\ufeffb"]
    assert list(read_documents(write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}'))) == ["a"]


@settings(max_examples=examples(60), deadline=None)
@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\ufeff"), max_size=30), min_size=1),
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(sorted(PACKERS)),
)
def test_no_block_size_changes_the_documents(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], block: int, piece: int, packing: str
) -> None:
    folder = tmp_path_factory.mktemp("blocks")
    path = write(folder / f"text.txt{packing}", "\0".join([*texts, "last"]).encode())
    rows = write(
        folder / f"rows.jsonl{packing}", "\n".join(json.dumps({"text": text}) for text in [*texts, "last"]).encode()
    )
    expected = [text for text in [*texts, "last"] if text]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files_module, "BLOCK", block)
        patch.setattr(documents_module, "PIECE_CHARS", piece)
        for file in (path, rows):
            assert list(read_documents(file)) == expected
            pieces = list(read_pieces(file))
            assert all(len(part) <= piece + block for part in pieces)
            assert list(joined(pieces)) == expected


def test_a_large_compressed_file_is_streamed(tmp_path: Path) -> None:
    """The first document is yielded before the rest is decompressed."""
    path = write(tmp_path / "big.txt.xz", b"\0".join(b"%07d" % i * 100 for i in range(40_000)))
    seen: list[float] = []
    texts = read_documents(path, progress=lambda done, total, note="": seen.append(done / total))
    assert next(texts) == "0000000" * 100
    assert len(seen) == 1
    assert sum(1 for _ in texts) == 39_999
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert len(seen) > 20


@pytest.mark.parametrize("packing", PACKERS)
def test_not_utf8_is_refused_by_line(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"latin.txt{packing}", b"one\ntwo\0three\nfour caf\xe9\nfive")
    message = refusal(path)
    assert f"{path}, line 3: not UTF-8 (byte 0xE9); if it is text, convert it to UTF-8" in message
    assert "row" not in message, "a text has no rows"
    rows = write(tmp_path / f"latin.jsonl{packing}", b'{"text": "one"}\n{"text": "caf\xe9"}\n')
    assert f"{rows}, line 2: not UTF-8" in refusal(rows)
    assert refusal(rows).endswith("; mend the row (data.skip_bad, or --skip-bad, leaves out a number of bad rows)")


def test_missing_and_empty_input_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.txt: no such file or folder"):
        read_documents(tmp_path / "gone.txt")
    with pytest.raises(UserError, match="empty folder"):
        read_documents(tmp_path)
    for name in ("none.txt", "none.jsonl", "none.txt.xz", "none.txt.gz", "none.txt.zst"):
        assert f"{name}: empty" in refusal(write(tmp_path / "files" / name, b""))
    assert "files: empty" in refusal(tmp_path / "files")
    assert "empty" in refusal(write(tmp_path / "nul.txt", b"\0\0"))
    parquet.write_table(pyarrow.table({"text": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    assert "empty" in refusal(tmp_path / "none.parquet")


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("{not json", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ('["text"]', "not a JSON object but a list"),
        ("null", "not a JSON object but null"),
        ('{"title": 1, "body": "x"}', "no column 'text'; the columns are 'title', 'body'"),
        ("{}", "the columns are none"),
        ('{"text": null}', "column 'text' is null, not a string"),
        ('{"text": 7}', "column 'text' is a number, not a string"),
        ('{"text": {"a": 1}}', "column 'text' is an object, not a string"),
        ('{"text": "half \\ud83d"}', "half a surrogate pair"),
    ],
)
def test_bad_jsonl_is_refused_by_line(tmp_path: Path, line: str, complaint: str) -> None:
    path = write(tmp_path / "rows.jsonl", f'{{"text": "fine"}}\n\n{line}\n'.encode())
    message = refusal(path)
    assert f"{path}, line 3: " in message
    assert complaint in message


def test_many_columns_are_listed_in_part(tmp_path: Path) -> None:
    row = {f"column{i}" * 20: i for i in range(50)}
    message = refusal(write(tmp_path / "rows.jsonl", json.dumps(row).encode()))
    assert "and 38 more" in message
    assert len(message) < 1000


@pytest.mark.parametrize("packing", [".xz", ".gz", ".zst"])
def test_damaged_compressed_files_are_refused(tmp_path: Path, packing: str) -> None:
    path = write(tmp_path / f"text.txt{packing}", os.urandom(4000).hex().encode())
    whole = path.read_bytes()
    for cut in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert f"{path}: damaged {packing} file" in refusal(path)
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 0xFF]) + whole[21:])
    assert str(path) in refusal(path)
    path.write_bytes(b"never packed")
    assert f"{path}: damaged {packing} file" in refusal(path)


@pytest.mark.parametrize("packing", [".xz", ".gz", ".zst"])
def test_compressed_files_of_several_streams(tmp_path: Path, packing: str) -> None:
    """`cat a.xz b.xz` is an .xz file too, and so for the others."""
    path = tmp_path / f"text.txt{packing}"
    path.write_bytes(PACKERS[packing](b"one ") + PACKERS[packing](b"document\0two"))
    assert list(read_documents(path)) == ["one document", "two"]


def test_names_of_parquet_columns(tmp_path: Path) -> None:
    """Equal names, and a name with a dot beside the nested column that has the same path."""
    path, rows = tmp_path / "rows.parquet", pyarrow.array(["one", "two"])
    nested = pyarrow.array([{"text": "wrong"}] * 2)
    parquet.write_table(pyarrow.Table.from_arrays([rows, rows, rows], ["text", "text", "id"]), path)
    assert refusal(path).endswith("2 columns are named 'text'; rename all but one")
    assert list(read_documents(path, "id")) == ["one", "two"]
    for name, table in {
        "meta.text": {"meta": nested, "meta.text": rows},
        "meta.text.": {"meta.text.": rows, "meta": nested},
        "": {"": rows, "meta": nested},
        "te`xt": {"te`xt": rows},
        "view": {"view": rows.cast(pyarrow.string_view())},
    }.items():
        parquet.write_table(pyarrow.table(table), path)
        assert list(read_documents(path, name)) == ["one", "two"]
    parquet.write_table(pyarrow.table({"meta": nested}), path)
    assert "no column 'meta.text'; the columns are 'meta'" in refusal(path, "meta.text")


def test_damaged_parquet_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    parquet.write_table(pyarrow.table({"text": [os.urandom(50).hex() for _ in range(500)]}), path)
    whole = path.read_bytes()
    for content in (b"never parquet", whole[: len(whole) // 2], whole[:200] + bytes(2000) + whole[2200:]):
        path.write_bytes(content)
        assert f"{path}: damaged parquet file" in refusal(path)


@pytest.mark.parametrize(
    ("name", "complaint"),
    [
        ("a_train_0.bin", "a token shard"),
        ("a.tar.gz", "an archive"),
        ("a.zip", "an archive"),
        ("a.txt.bz2", "bzip2"),
        ("a.parquet.xz", "compressed parquet"),
    ],
)
def test_files_without_text_are_refused(tmp_path: Path, name: str, complaint: str) -> None:
    assert complaint in refusal(write(tmp_path / name, b"words"))
    assert complaint in refusal(tmp_path)


def test_unreadable_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert "a pipe or a device" in refusal(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    assert "empty folder" in refusal(tmp_path)


def test_stdlib_text() -> None:
    documents = stdlib_documents()
    names, texts = [name for name, _ in documents], [text for _, text in documents]
    assert list(read_documents("stdlib")) == texts
    assert 500 < len(documents) < 1200
    assert 1_500_000 < sum(len(text.encode()) for text in texts) < 4_000_000
    assert len(set(names)) == len(names)
    assert len(set(texts)) == len(texts)
    assert all(text and "\0" not in text for text in texts)
    # The reference comes first, then the modules, each sorted; tests and installed packages are not in it.
    topics = sum(name.startswith("topic ") for name in names)
    assert topics > 50
    assert names == sorted(names[:topics]) + sorted(names[topics:])
    assert {"json.decoder", "argparse", "os", "email"} <= set(names)
    assert not any("test" in name.split(".") or name.startswith("site-packages") for name in names[topics:])
    module = dict(documents)["json.decoder"]
    assert module.startswith("Implementation of JSONDecoder\n\n")
    assert "Simple JSON <https://json.org> decoder" in module
    assert stdlib_identity() == stdlib_identity()


@pytest.mark.slow
def test_stdlib_text_is_the_same_in_another_process() -> None:
    import subprocess
    import sys

    code = (
        "from jepamba.text import stdlib_documents; import hashlib;"
        "print(hashlib.sha256(repr(stdlib_documents()).encode()).hexdigest())"
    )
    env = os.environ | {"PYTHONHASHSEED": "1"}
    other = subprocess.run([sys.executable, "-c", code], env=env, check=True, capture_output=True, text=True).stdout
    assert other.strip() == hashlib.sha256(repr(stdlib_documents()).encode()).hexdigest()


def test_the_list_of_refused_forms_has_no_text_form() -> None:
    assert not {".txt", ".md", ".jsonl", ".parquet", ""} & set(inventory._NO_TEXT)


def test_zstd_with_a_long_window_is_read(tmp_path: Path) -> None:
    # As `zstd --long=31` writes it: the window of the frame is 2 GB.
    parameters = zstandard.ZstdCompressionParameters.from_level(1, window_log=31)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    (tmp_path / "long.txt.zst").write_bytes(stream.compress(b"a long window") + stream.flush())
    assert list(read_documents(tmp_path / "long.txt.zst")) == ["a long window"]
