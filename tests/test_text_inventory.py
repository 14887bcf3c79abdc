"""What is read, what is left out and why: folders as users have them, and rows that are bad."""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from jepamba.cli import main
from jepamba.data import open_folder
from jepamba.distributed import SINGLE_PROCESS
from jepamba.errors import UserError
from jepamba.text import read_documents
from jepamba.text.documents import BadRows
from jepamba.text.inventory import take_inventory
from jepamba.train import train
from jepamba.train.consistency import read_same_corpus
from tiny import tiny

ROWS = ['{"text": "The kettle sings."}', '{"text": "caf\\u00e9"}']
TEXTS = ["The kettle sings.", "café"]


def fill(folder: Path, **files: str) -> Path:
    """Write `files`, by names whose slashes are written as two underscores and whose dots as one."""
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


def read(folder: Path, split: str = "train") -> list[str]:
    """The names of the files that are read."""
    return [str(Path(name).relative_to(folder)) for name, _ in take_inventory(folder, split).read]


def left_out(folder: Path, split: str = "train") -> dict[str, str]:
    return dict(take_inventory(folder, split).left_out)


def built(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code and both outputs of `jepamba data build WORDS --tokenizer bytes`."""
    capsys.readouterr()
    code = main(["data", "build", *words, "--tokenizer", "bytes"])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("name", ["c4.json", "rows", "part-0000.txt", "dump.log", "rows.JSON"])
@pytest.mark.parametrize("packed", [False, True])
def test_json_lines_under_another_name(tmp_path: Path, name: str, packed: bool) -> None:
    content = ("\n".join(ROWS) + "\n").encode()
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(content) if packed else content)
    assert list(read_documents(tmp_path)) == TEXTS
    with pytest.raises(UserError, match="no column 'body'; the columns are 'text'"):
        list(read_documents(tmp_path, "body"))


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("a.json", "[\n" + ",\n".join(ROWS) + "\n]", "JSON, but not one object a line"),
        ("a.json", json.dumps([json.loads(row) for row in ROWS]), "JSON, but not one object a line"),
        ("a.json", json.dumps(json.loads(ROWS[0]), indent=1), "JSON, but not one object a line"),
        ("a.csv", "id,text\n1,words\n", "a table; convert it"),
        ("a.tsv.gz", "id\ttext\n", "a table; convert it"),
        ("a.arrow", "ARROW1", "an Arrow file; convert it"),
        ("a.txt", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
    ],
)
def test_what_is_no_prose_is_refused(tmp_path: Path, name: str, content: str, complaint: str) -> None:
    raw = content.encode()
    (tmp_path / name).write_bytes(gzip.compress(raw) if name.endswith(".gz") else raw)
    fill(tmp_path, z_txt="prose")
    with pytest.raises(UserError, match=complaint):
        list(read_documents(tmp_path))


@pytest.mark.parametrize(
    "text",
    [
        "[[link]] in a wiki",
        '["Quoted," he said.]',
        "[1] a note",
        "[",
        "a\0" * 9,
        "caf\u00e9\x1b[0m" * 99,
        "{",
        "{braces} in prose\nmore",
        '{"a": 1} and prose\n',
        "{\n  code();\n}\n",
        '"quoted"\n',
    ],
)
def test_prose_that_begins_like_json_is_prose(tmp_path: Path, text: str) -> None:
    assert list(read_documents(fill(tmp_path, a_txt=text))) == [part for part in text.split("\0") if part]


WORDS = "The kettle sings in the quiet morning. " * 9
ROW_LINES = "\n".join(ROWS * 9)
NO_TEXT = {
    "utf-16.txt": (WORDS.encode("utf-16"), "UTF-16; convert"),
    "utf-16-le.txt": (WORDS.encode("utf-16-le"), "UTF-16 without"),
    "utf-16-be.txt": (WORDS.encode("utf-16-be"), "UTF-16 without"),
    "utf-32-le.txt": (WORDS.encode("utf-32-le"), "UTF-16 without"),
    "cyrillic.txt": (("Тихое утро. " * 9).encode("utf-16-le"), "UTF-16 without"),
    "utf-16.jsonl": (ROW_LINES.encode("utf-16-le"), "UTF-16 without"),
    "noise.dat": (random.Random(0).randbytes(3000), "binary"),
    "figure.txt": (b"\x89PNG\r\n\x1a\n" + bytes(99), "an image"),
    "doc": (b"%PDF-1.4\n%\xe2\xe3", "a PDF document"),
    "part-0": (b"PAR1\x15\x04", "a parquet file under another name; rename"),
    "packed.txt": (gzip.compress(WORDS.encode()), "add .gz to its name"),
    "pointer.parquet": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "pointer.txt.gz": (b"version https://git-lfs.github.com/spec/v1\noid", "git lfs pull"),
    "words.parquet": (WORDS.encode(), "damaged parquet file"),
    "plain.txt.gz": (WORDS.encode(), "damaged .gz file"),
    "array.txt": (json.dumps([json.loads(row) for row in ROWS]).encode(), "one object a line"),
    "long-array.txt": (json.dumps([{"text": WORDS}] * 999).encode(), "one object a line"),
    "strings.txt": (json.dumps([WORDS] * 9).encode(), "one object a line"),
    "lists.txt": (b'[1, "one"]\n' * 9, "one object a line"),
    "array.jsonl": (b"[\n" + ",\n".join(ROWS).encode() + b"\n]", "one object a line"),
    "book.ipynb": (json.dumps({"cells": [{"source": [WORDS]}]}, indent=1).encode(), "one object a line"),
    "text.jpc": (b"\x89JPC\r\n\x1a\n\0\0", "a text that `compress` made"),
    "text.out": (b"\x89JPC\r\n\x1a\n\0\0", "a text that `compress` made"),
}


@pytest.mark.parametrize("name", NO_TEXT)
def test_a_file_that_is_no_text_is_refused_before_any_is_read(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever number of bad rows is allowed, and although it is the last file."""
    content, complaint = NO_TEXT[name]
    fill(tmp_path / "data", a_txt=WORDS)
    path = tmp_path / "data" / f"z-{name}"
    path.write_bytes(content)
    monkeypatch.setattr("jepamba.text.documents.read_blocks", None)
    for place in [path] if name == "text.jpc" else [path, path.parent]:
        code, _, err = built(capsys, str(place), "--out", str(tmp_path / "s"), "--skip-bad", "999")
        assert code == 2
        assert err.startswith(f"jepamba: {path}: ")
        assert complaint in err


@pytest.mark.parametrize("name", ["rows", "rows.txt", "rows.json", "rows.json.gz"])
@pytest.mark.parametrize("first", ['ext": "cut"}', '{"text": "comma",}', "caf"])
def test_a_bad_first_row_is_a_bad_row(tmp_path: Path, name: str, first: str) -> None:
    content = f"{first}\n{ROW_LINES}".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(UserError, match=rf"{name}, line 1: not JSON .*skip_bad"):
        list(read_documents(tmp_path))
    bad = BadRows(1)
    assert list(read_documents(tmp_path, bad_rows=bad)) == TEXTS * 9
    assert bad.count == 1


def test_a_sequence_of_json_texts_is_rows(tmp_path: Path) -> None:
    """Each begins with the record separator, https://www.rfc-editor.org/rfc/rfc7464."""
    assert list(read_documents(fill(tmp_path, a_txt="\n".join(f"\x1e{row}" for row in ROWS)))) == TEXTS


def test_a_long_first_row_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.text.files.START", 9)
    assert list(read_documents(fill(tmp_path, a_json="\n".join(ROWS)))) == TEXTS


def test_linked_folders_are_read_once(tmp_path: Path) -> None:
    elsewhere = fill(tmp_path / "elsewhere", x_txt="linked")
    data = fill(tmp_path / "data", a_txt="own", c__d_txt="below")
    (data / "b").symlink_to(elsewhere)
    (data / "loop").symlink_to(data)
    (data / "again").symlink_to(data / "c")
    (data / "e.txt").symlink_to(data / "a.txt")
    (data / "gone.txt").symlink_to(tmp_path / "nowhere")
    (data / "self").symlink_to("self")
    os.mkfifo(data / "pipe")
    assert read(data) == ["a.txt", "again/d.txt", "b/x.txt"]
    twice = "read already, or the output of this command"
    assert left_out(data) == {
        "loop": twice,
        "c": twice,
        "e.txt": twice,
        "gone.txt": "a link to nothing",
        "self": "a link to nothing",
        "pipe": "neither a file nor a folder",
    }
    # A folder that has links alone.
    only = tmp_path / "only"
    only.mkdir()
    (only / "part").symlink_to(elsewhere)
    assert list(read_documents(only)) == ["linked"]


def test_a_folder_that_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = fill(tmp_path, a_txt="own", locked__b_txt="secret")
    listdir = os.listdir

    def refusing(path: Path) -> list[str]:
        if path == data / "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return listdir(path)

    monkeypatch.setattr("os.listdir", refusing)
    assert read(data) == ["a.txt"]
    assert left_out(data) == {"locked": "cannot be read (Permission denied)"}
    monkeypatch.setattr("os.access", lambda path, mode: Path(path) != data / "b.txt")
    fill(data, b_txt="secret")
    assert read(data) == ["a.txt"]
    assert left_out(data)["b.txt"] == "cannot be read (Permission denied)"


def test_the_output_of_this_command_is_no_text(tmp_path: Path) -> None:
    """`jepamba train … --data.train . > log.txt`: the log grows while it is read."""
    fill(tmp_path, a_txt="own")
    code = "from jepamba.text.inventory import take_inventory as t; print([n for n, _ in t('.').read], flush=True)"
    with (tmp_path / "log.txt").open("w") as log:
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, stdout=log, check=True)
    assert (tmp_path / "log.txt").read_text() == "['a.txt']\n"


def test_the_table_of_a_build(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = fill(tmp_path / "data", a_txt="one", b_md="two", _hidden="no")
    (data / "gone").symlink_to("nowhere")
    code, out, err = built(capsys, str(data), "--out", str(tmp_path / "s"), "--val", str(data / "a.txt"))
    assert code == 0, err
    assert "jepamba: 1 files of the validation text are in the training text too" in err
    assert [line.split() for line in err.splitlines()[:-1]] == [
        ["text", "files", "bytes"],
        ["training", "2", "6", "read:", ".md", "1,", ".txt", "1"],
        ["training", "1", "left", "out,", "hidden:", ".hidden"],
        ["training", "1", "left", "out,", "a", "link", "to", "nothing:", "gone"],
        ["validation", "1", "3", "read:", ".txt", "1"],
    ]
    assert "hidden" not in out


def test_the_table_of_a_run_and_of_eval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = fill(
        tmp_path / "data", **{f"d{i}_txt": f"Document {i} has its own words. {i * 12345} " * 9 for i in range(9)}
    )
    (data / "gone").symlink_to("nowhere")
    train(tiny(data, train__steps=1, data__skip_bad=1), tmp_path / "run")
    assert "left out, a link to nothing: gone" in capsys.readouterr().err
    artifact = str(tmp_path / "run/artifact.jepa")
    assert main(["eval", artifact, "--data", str(data), "--json"]) == 0
    captured = capsys.readouterr()
    assert "left out, a link to nothing: gone" in captured.err
    assert json.loads(captured.out)["bytes"] > 0
    # Text beside shards.
    shards = tmp_path / "shards"
    assert built(capsys, str(data), "--out", str(shards))[0] == 0
    fill(shards, notes_txt="words")
    read_same_corpus(tiny(shards), SINGLE_PROCESS)
    rows = [line.split() for line in capsys.readouterr().err.splitlines()[:4]]
    assert [row[:2] for row in rows] == [["text", "files"], ["training", "1"], ["training", "1"], ["validation", "1"]]
    assert rows[2][2:] == ["left", "out,", "no", "tokens:", "notes.txt"]
    # The allowance of a run is not one for other text.
    bad = str(fill(tmp_path, bad_jsonl="\n".join([*ROWS * 9, "{"])) / "bad.jsonl")
    assert main(["eval", artifact, "--data", bad]) == 2
    assert main(["eval", artifact, "--data", bad, "--skip-bad", "1"]) == 0
    assert "bad rows left out: 1" in capsys.readouterr().err


def test_a_clone_of_a_data_set(tmp_path: Path) -> None:
    clone = fill(
        tmp_path / "clone",
        README_md="# A card",
        LICENSE="terms",
        stats_json='{"rows":\n 3}',
        _gitattributes="x",
        notes_txt="prose of its own",
        metadata_csv="a,b",
        images_zip="PK",
    )
    (clone / "data").mkdir()
    for split in ("train", "validation", "test"):
        parquet.write_table(pyarrow.table({"text": [split]}), clone / "data" / f"{split}-0.parquet")
    (clone / "dataset_infos.json").write_text('{"default": {"features": 1}}')
    assert read(clone) == ["data/train-0.parquet", "notes.txt"]
    assert (
        left_out(clone)
        == {
            ".gitattributes": "hidden",
            "README.md": "describes the data",
            "LICENSE": "describes the data",
            "dataset_infos.json": "describes the data",
            "stats.json": "JSON, but not one object a line",
            "metadata.csv": "no text",
            "images.zip": "no text",
            "data/validation-0.parquet": "split validation",
            "data/test-0.parquet": "split test",
        }
        or left_out(clone)["data/infos.json"]
    )
    assert read(clone, "val") == ["data/validation-0.parquet", "notes.txt"]
    assert read(clone, "test") == ["data/test-0.parquet", "notes.txt"]
    # A folder or file that is named itself is read.
    assert list(read_documents(clone / "data/test-0.parquet")) == ["test"]


def test_splits_of_plain_text(tmp_path: Path) -> None:
    text = fill(tmp_path, wiki_train_tokens="a", wiki_valid_tokens="b", wiki_test_tokens="c", more_txt="d")
    assert read(text) == ["more.txt", "wiki.train.tokens"]
    assert read(text, "val") == ["more.txt", "wiki.valid.tokens"]
    # Without a file of the split, names mean nothing.
    (text / "wiki.train.tokens").unlink()
    assert read(text) == ["more.txt", "wiki.test.tokens", "wiki.valid.tokens"]


def test_training_text_is_not_read_for_another_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fill(tmp_path / "text", train_jsonl=ROWS[0], test_jsonl=ROWS[1], more_jsonl=ROWS[1])
    missing = r"no file of the split '{}'; by the names of the files, splits are test, train: name a file or folder"
    for split, name in (("val", "validation"), ("foo", "foo")):
        with pytest.raises(UserError, match=missing.format(name)):
            take_inventory(text, split)
    code, _, err = built(capsys, str(text), "--val", str(text), "--out", str(tmp_path / "s"))
    assert code == 2
    assert "no file of the split 'validation'" in err
    assert read(text, "test") == ["more.jsonl", "test.jsonl"]
    assert read(text, "more") == ["more.jsonl"]
    # A folder of one split, named itself, is read for it.
    assert read(fill(tmp_path / "test", a_txt="a"), "test") == ["a.txt"]
    assert read(tmp_path / "test", "val") == ["a.txt"]
    with pytest.raises(UserError, match="splits are none"):
        take_inventory(tmp_path / "test", "foo")


def test_a_readme_without_tables_is_text(tmp_path: Path) -> None:
    assert read(fill(tmp_path, README_md="a book", LICENSE="terms")) == ["LICENSE", "README.md"]


def test_what_jepamba_wrote_is_no_text(tmp_path: Path) -> None:
    names = "runs__r__config_toml runs__r__metrics_jsonl study__plan_toml study__r_toml sub__config_toml"
    names += " sub__submission_json shards__meta_json shards__text_bin cache__tokenizers__k_model x_jepa x_jpc"
    names += " hf__config_json"
    data = fill(tmp_path, a_txt="own", **dict.fromkeys(names.split(), ""))
    (data / "hf/modeling_jepamba.py").touch()
    (data / "fineweb").mkdir()
    (data / "fineweb/fineweb_train_000000.bin").touch()
    assert read(data) == ["a.txt"]
    assert left_out(data) == {
        "runs/r": "a run",
        "study": "a study",
        "sub": "a submission",
        "shards": "shards of tokens",
        "hf": "a model for transformers",
        "fineweb": "shards of tokens",
        "x.jpc": "a text that `compress` made",
        "cache/tokenizers/k.model": "a tokenizer",
        "x.jepa": "an artifact",
    }
    with pytest.raises(UserError, match="the folder of a run, not text"):
        take_inventory(data / "runs/r")
    with pytest.raises(UserError, match="the folder of a model for transformers, not text"):
        take_inventory(data / "hf")


BAD_ROWS = {
    "null.jsonl": b'{"text": "a"}\n{"text": null}\n{"text": "b"}\n',
    "surrogate.jsonl": b'{"text": "a"}\n{"text": "cut \\ud83d"}\n{"text": "b"}\n',
    "latin.jsonl": b'{"text": "a"}\n{"text": "caf\xe9"}\n{"text": "b"}\n',
    "cut.jsonl": b'{"text": "a"}\n{"text": "b"}\n{"text": "c',
    "other.jsonl": b'{"text": "a"}\n{"body": 1}\n{"text": "b"}\n',
    "nan.json": b'{"text": "a"}\n{"text": NaN}\n{"text": "b"}\n',
    "latin.txt": b"a\0caf\xe9\0b",
}


@pytest.mark.parametrize("name", [*BAD_ROWS, "null.parquet"])
def test_bad_rows_are_refused_or_allowed_and_counted(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    if name == "null.parquet":
        parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), path)
    else:
        path.write_bytes(BAD_ROWS[name])
    with pytest.raises(UserError, match=r"data\.skip_bad"):
        list(read_documents(path))
    bad = BadRows(1)
    assert list(read_documents(path, bad_rows=bad)) == ["a", "b"]
    assert bad.count == 1
    assert f"{path}, " in bad.first
    code, _, err = built(capsys, str(path), "--out", str(tmp_path / "no"))
    assert code == 2
    assert not (tmp_path / "no").exists()
    code, out, err = built(capsys, str(path), "--out", str(tmp_path / "s"), "--skip-bad", "1")
    assert code == 0
    assert "bad rows left out: 1; first," in err
    assert "train: bad rows of the text left out: 1" in out
    assert open_folder(tmp_path / "s").splits["train"].bad_rows == 1


def test_one_bad_row_too_many(tmp_path: Path) -> None:
    fill(tmp_path, a_jsonl="\n".join(["{", ROWS[0]] * 2), b_jsonl="\n".join([ROWS[0], "{"]))
    with pytest.raises(UserError, match=r"b\.jsonl, line 2: not JSON .*; this is bad row 3, 2 are allowed"):
        list(read_documents(tmp_path, bad_rows=BadRows(2)))


def test_a_number_of_any_length_is_no_error(tmp_path: Path) -> None:
    rows = f'{{"text": "a", "n": {"9" * 5000}}}\n{{"text": "b", "text2": -{"9" * 5000}}}'
    assert list(read_documents(fill(tmp_path, a_jsonl=rows))) == ["a", "b"]


def test_a_run_counts_its_bad_rows_each_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.dumps({"text": f"Document {i} has its own words. {i * 12345} " * 9}) for i in range(9)]
    data = fill(tmp_path, a_jsonl="\n".join([*rows, '{"text": null}']))
    with pytest.raises(UserError, match=r"a\.jsonl, line 10: column 'text' is null"):
        read_same_corpus(tiny(data / "a.jsonl"), SINGLE_PROCESS)
    for _ in ("read", "cached"):
        capsys.readouterr()
        read_same_corpus(tiny(data / "a.jsonl", data__skip_bad=1), SINGLE_PROCESS)
        assert "training text: bad rows left out: 1 (data.skip_bad)" in capsys.readouterr().err


def test_a_file_that_two_names_reach_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = fill(tmp_path / "text", a_txt="one\0two", b_txt="three\0four")
    for again in (text / "b.txt", tmp_path / "text" / ".." / "text"):
        code, _, err = built(capsys, str(text), str(again), "--out", str(tmp_path / "shards"))
        assert code == 2
        assert "would be read twice" in err
    assert built(capsys, str(text / "a.txt"), str(text / "b.txt"), "--out", str(tmp_path / "shards"))[0] == 0


def test_a_folder_with_the_name_of_the_text_in_python_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(fill(tmp_path, stdlib__a_txt="one\0two"))
    monkeypatch.setattr("jepamba.text.documents.stdlib_documents", lambda: [("a", "some text"), ("b", "other words")])
    code, _, err = built(capsys, "stdlib", "--out", "of-python", "--holdout", "0.5")
    assert code == 0
    assert "left out, this name is the text in Python; ./stdlib is the file or folder: stdlib" in err
    code, _, err = built(capsys, "./stdlib", "--out", "of-folder", "--holdout", "0.5")
    assert code == 0
    assert "left out" not in err
