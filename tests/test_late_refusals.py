"""What can be known is checked before the work, and finished work is kept."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any, NoReturn

import pyarrow
import pytest
import torch
from pyarrow import parquet

from jepamba.cli import main
from jepamba.data import open_folder
from jepamba.distributed import SINGLE_PROCESS
from jepamba.errors import DivergedError, UserError
from jepamba.evaluate.diagnostics import spectrum
from jepamba.folder_lock import unused_folder
from jepamba.io import check_writable, check_writable_folder
from jepamba.study.plan import load_plan
from jepamba.study.run import run_plan
from jepamba.train import resume, train
from jepamba.train.consistency import read_same_corpus
from tiny import preset, text_file, tiny


def never(*_: Any, **__: Any) -> NoReturn:
    raise AssertionError("this work is begun too early")


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that refuses `jepamba WORDS`."""
    capsys.readouterr()
    assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jepamba: ")]
    return lines[-1]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `topics.txt` and a finished run of it, `run`."""
    folder = tmp_path_factory.mktemp("finished")
    train(tiny(text_file(folder), train__steps=1), folder / "run")
    return folder


def test_a_run_in_the_folder_of_its_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text_file(Path())
    monkeypatch.setattr("jepamba.train.run_folder.Loop.run_to_end", lambda loop: loop._event("trained") or {})
    run = tiny(Path("topics.txt"), data__train=".", data__cache="cache")
    train(run, Path("runs/quick"))
    Path("runs/quick/artifact.jepa").write_bytes(b"\xff")
    resume(Path("runs/quick"))
    train(run, Path("runs/quick-2"))
    assert main(["data", "build", ".", "--out", "shards", "--tokenizer", "bytes"]) == 0
    alone = read_same_corpus(tiny(Path("topics.txt")), SINGLE_PROCESS)
    assert len(read_same_corpus(run, SINGLE_PROCESS).train) == len(alone.train)


@pytest.mark.parametrize("place", ["the current folder", "a link", "a link to nothing yet", "a new volume"])
def test_any_empty_folder_takes_shards(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text, out = text_file(tmp_path), tmp_path / "out"
    if place == "a link to nothing yet":
        (tmp_path / "link").symlink_to(out)
    else:
        out.mkdir()
    if place == "the current folder":
        monkeypatch.chdir(out)
    elif place == "a link":
        (tmp_path / "link").symlink_to(out)
    elif place == "a new volume":
        (out / "lost+found").mkdir()
        inode = out.stat().st_ino
    name = {"the current folder": ".", "a new volume": str(out)}.get(place, str(tmp_path / "link"))
    assert main(["data", "build", str(text), "--out", name, "--tokenizer", "bytes"]) == 0
    assert set(open_folder(out).splits) == {"train", "val"}
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob(".lock"))
    if place == "a new volume":
        assert out.stat().st_ino == inode, "a mounted folder cannot be replaced"


@pytest.mark.parametrize("out", ["full", "shards", "topics.txt", "topics.txt/out", "x" * 300])
def test_a_build_is_refused_before_its_work(
    tmp_path: Path, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_file(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full/letter.txt").write_text("dear")
    assert main(["data", "build", str(text), "--out", str(tmp_path / "shards"), "--tokenizer", "bytes"]) == 0
    monkeypatch.setattr("jepamba.text.tokenizers.train_bpe", never)
    monkeypatch.setattr("jepamba.data.source.read_pieces", never)
    refused(capsys, "data", "build", str(text), "--out", str(tmp_path / out))


def test_a_cache_that_cannot_be_written_is_refused_before_its_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_file(tmp_path)
    monkeypatch.setattr("jepamba.data.source.read_pieces", never)
    for tokenizer in ("bpe", "bytes"):
        run = tiny(text, data__cache=str(text / "cache"), data__tokenizer=tokenizer)
        with pytest.raises(UserError, match=r"cannot be (written|created)"):
            read_same_corpus(run, SINGLE_PROCESS)


@pytest.mark.parametrize("out", ["", "topics.txt/out", "x" * 300])
@pytest.mark.parametrize("command", ["compress", "decompress", "latents"])
def test_an_output_is_refused_before_its_work(
    finished: Path, command: str, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # First, because it imports the package, which must not get the other replacement for good.
    monkeypatch.setattr("jepamba.compress.Compressor.open", never)
    monkeypatch.setattr("jepamba.artifact.load_artifact", never)
    text, artifact = str(finished / "topics.txt"), str(finished / "run/artifact.jepa")
    words = [artifact, "--data", text] if command == "latents" else [text, "--model", artifact]
    assert "cannot be written" in refused(capsys, command, *words, "-o", str(finished / out))
    assert not list(finished.glob(".*.partial"))


@pytest.mark.parametrize("out", ["topics.txt", "topics.txt/out", "/proc/out", "/proc/self", "x" * 300])
@pytest.mark.parametrize("command", ["train", "export", "submission", "data build", "study run"])
def test_a_folder_that_cannot_be_written_is_refused_with_a_remedy(
    finished: Path, command: str, out: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepamba.data.source.read_pieces", never)
    run, text, place = str(finished / "run"), str(finished / "topics.txt"), str(finished / out)
    words = {
        "train": ["quick", "--data.train", text, "--out", place],
        "export": [run, "--to", "transformers", place],
        "submission": [run, "-o", place],
        "data build": [text, "--out", place, "--tokenizer", "bytes"],
        "study run": ["quick-jepa", "--out", place],
    }[command]
    line = refused(capsys, *command.split(), *words)
    assert line.startswith(f"jepamba: {place}")
    assert "; choose another" in line


def test_a_new_name_is_not_sought_where_no_folder_can_be_made() -> None:
    with (
        pytest.raises(UserError, match=r"^/proc/run: cannot be written .*; choose another"),
        unused_folder(Path("/proc/run")),
    ):
        never()


def test_a_file_system_that_cannot_be_written_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_writable(tmp_path / "new/folders/file")
    check_writable(Path(os.devnull))
    assert not list(tmp_path.iterdir())

    def read_only(*_: Any, **__: Any) -> NoReturn:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "touch", read_only)
    for check in (check_writable, check_writable_folder):
        with pytest.raises(UserError, match=r"cannot be written \(Read-only file system\); choose another output"):
            check(tmp_path / "new/folders/file")


@pytest.mark.parametrize(
    ("prompt", "separator", "complaint"),
    [("a\0b", "yes", r"^eval\.prompts = .*'a\\x00b'.*: has a NUL character"), ("", "no", r"^eval\.prompts: an empty")],
)
def test_a_bad_prompt_is_refused_before_training(tmp_path: Path, prompt: str, separator: str, complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        train(
            tiny(text_file(tmp_path), eval__prompts=["The ", prompt], data__byte_separator=separator), tmp_path / "run"
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train__device", "cuda"),
        ("train__track", "wandb"),
        ("data__tokenizer", "gone.model"),
        ("data__val", "gone.txt"),
        ("data__val", "z.zip"),
    ],
)
def test_what_needs_no_text_is_refused_before_it_is_read(
    tmp_path: Path, name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = text_file(tmp_path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "z.zip").touch()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setitem(sys.modules, "wandb", None)
    monkeypatch.setattr("jepamba.data.source.read_pieces", never)
    with pytest.raises(UserError, match=value):
        train(tiny(text, **{name: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fault", ["another column", "cut", "another column of rows"])
@pytest.mark.parametrize("place", ["a folder", "another path", "validation"])
def test_a_file_without_the_column_is_refused_before_any_is_read(
    tmp_path: Path, fault: str, place: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = tmp_path / "text/a.jsonl", tmp_path / ("text" if place == "a folder" else "other") / "b.parquet"
    for file in (good, bad):
        file.parent.mkdir(exist_ok=True)
    good.write_text('{"text": "The kettle sings."}\n')
    parquet.write_table(pyarrow.table({"body" if fault == "another column" else "text": ["A", "B"]}), bad)
    if fault == "cut":
        bad.write_bytes(bad.read_bytes()[:-20])
    if fault == "another column of rows":
        bad.unlink()
        bad = bad.with_suffix(".jsonl")
        bad.write_text('{"body": "A"}\n')
    monkeypatch.setattr("jepamba.data.source.read_pieces", never)
    more = {"a folder": [], "another path": [str(bad)], "validation": ["--val", str(bad)]}[place]
    words = [str(good.parent), *more, "--out", str(tmp_path / "out"), "--tokenizer", "bytes"]
    assert str(bad) in refused(capsys, "data", "build", *words)
    if place != "another path":
        run = tiny(good.parent, data__val=str(bad) if place == "validation" else "")
        with pytest.raises(UserError, match=bad.name):
            read_same_corpus(run, SINGLE_PROCESS)


@pytest.mark.parametrize("words", [("--sliding", "999"), ("--temperature", "0"), ("--temperature", "nan")])
def test_a_score_is_refused_before_the_text_is_read(
    finished: Path, words: tuple[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("jepamba.data.load_tokens", never)
    refused(capsys, "eval", str(finished / "run/artifact.jepa"), "--data", str(finished / "topics.txt"), *words)


@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("jepamba.train.consistency.run_corpus", "stopped before the run began; the same command starts it"),
        ("jepamba.train.run_folder.Loop.run_to_end", "stopped; `jepamba resume "),
    ],
)
def test_the_hint_of_an_interrupt_is_true(
    tmp_path: Path, where: str, hint: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(where, interrupt)
    out = tmp_path / "run"
    assert main(["train", preset(tmp_path, tiny(text_file(tmp_path))), "--out", str(out)]) == 130
    assert f"\njepamba: {hint}" in capsys.readouterr().err
    assert out.exists() == hint.startswith("stopped;")


@pytest.mark.parametrize("settings", [{}, {"train__val_every": 1}])
def test_a_diverged_run_ends_in_one_line(
    tmp_path: Path, settings: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny(text_file(tmp_path), train__steps=2, optim__muon_lr=1e9, optim__adam_lr=1e9, **settings)
    complaint = refused(capsys, "train", preset(tmp_path, run), "--out", str(tmp_path / "run"))
    assert complaint.startswith("jepamba: the model has diverged")
    if not settings:
        artifact = str(tmp_path / "run/artifact.jepa")
        text = ("--data", str(tmp_path / "topics.txt"))
        for words in (("eval", artifact, *text), ("generate", artifact)):
            assert refused(capsys, *words) == complaint
        assert "not finite" in refused(capsys, "latents", artifact, *text, "-o", str(tmp_path / "l"))


def test_values_that_are_not_finite_are_said() -> None:
    for value in (math.nan, math.inf, 1e200):
        with pytest.raises(DivergedError):
            spectrum(torch.tensor([[[0.0, 1.0], [value, 2.0]]], dtype=torch.float64))


def test_a_report_that_cannot_be_written_fails_no_run(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> NoReturn:
        raise OSError(28, "No space left on device")

    summary = json.loads((finished / "run/summary.json").read_text())
    monkeypatch.setattr("jepamba.train.resume", lambda *_: summary)
    monkeypatch.setattr("jepamba.report.html.write_report", full)
    assert main(["resume", str(finished / "run")]) == 0
    captured = capsys.readouterr()
    assert "the report cannot be written (No space left on device)" in captured.err
    assert "plain windows" in captured.out


@pytest.mark.parametrize("words", ["submission RUN -o OUT --name", "push RUN a/b --license"])
def test_text_that_no_file_can_hold_is_refused(
    finished: Path, words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = words.replace("RUN", str(finished / "run")).replace("OUT", str(tmp_path / "out")).split()
    assert "not UTF-8" in refused(capsys, *command, "caf\udce9")
    assert not (tmp_path / "out").exists()


def test_a_study_whose_runs_would_be_refused_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.study.run._execute", never)
    with pytest.raises(UserError, match="is not UTF-8"):
        run_plan(load_plan("quick-jepa"), tmp_path / "caf\udce9")
    assert not list(tmp_path.iterdir())
