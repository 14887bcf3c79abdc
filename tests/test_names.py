"""Names that are not UTF-8, as a folder from a Latin-1 system has them: they work, or one line refuses them first."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from jepamba import ops
from jepamba.config import ConfigError, build
from jepamba.data.source import cache_folder
from jepamba.errors import UserError
from jepamba.ops.cpp import library
from jepamba.presets import load_preset
from processes import Running
from tiny import preset, text_file, tiny

LATIN = os.fsdecode(b"caf\xe9")


def run(folder: Path, *words: str, code: int = 0) -> str:
    """The output of `jepamba WORDS` in a process of its own, which ends with `code`."""
    with Running(words, folder / f"process-{len(list(folder.iterdir()))}") as process:
        assert process.wait() == [code], process.output()
        return process.output()


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    settings = preset(tmp_path, tiny(text))
    latin_text, latin_run = str(tmp_path / f"{LATIN}.txt"), tmp_path / LATIN
    shutil.copy(text, latin_text)
    shutil.copy(settings, tmp_path / f"{LATIN}.toml")
    # A run cannot record such a name, and its checkpoints cannot be read there: refused before the text is read.
    shown = run(tmp_path, "train", settings, "--data.train", latin_text, "--out", str(tmp_path / "no"), code=2)
    assert shown.startswith("jepamba: data.train = '")
    assert shown.endswith("is not UTF-8; rename the file, or change the text\n")
    assert shown.count("\n") == 1
    shown = run(tmp_path, "train", settings, "--out", str(latin_run), code=2)
    assert "this name is not UTF-8; rename it" in shown
    assert shown.count("\n") == 1
    assert not latin_run.exists()
    assert not (tmp_path / "no").exists()
    # A preset's own name is only noted.
    run(tmp_path, "train", str(tmp_path / f"{LATIN}.toml"), "--out", str(tmp_path / "run"))
    artifact = str(tmp_path / "run" / "artifact.jepa")
    # A run that was moved keeps its checkpoints.
    shutil.move(tmp_path / "run", latin_run)
    for command in ("resume", "inspect"):
        shown = run(tmp_path, command, str(latin_run), code=2)
        assert "this name is not UTF-8; rename it" in shown
        assert "delete" not in shown
    shutil.move(latin_run, tmp_path / "run")
    run(tmp_path, "resume", str(tmp_path / "run"))
    # The other commands take any name.
    shutil.copy(artifact, tmp_path / f"{LATIN}.jepa")
    latin_artifact, packed = str(tmp_path / f"{LATIN}.jepa"), str(tmp_path / f"{LATIN}.packed")
    score = run(tmp_path, "eval", latin_artifact, "--data", latin_text, "--json").splitlines()[-1]
    assert json.loads(score)["bytes"] == len(text.read_bytes().replace(b"\0", b""))
    run(tmp_path, "data", "build", latin_text, "--out", str(tmp_path / f"{LATIN}-shards"), "--tokenizer", "bytes")
    small = tmp_path / f"{LATIN}.small"
    small.write_bytes(text.read_bytes()[:200])
    run(tmp_path, "compress", str(small), "--model", latin_artifact, "--out", packed)
    run(tmp_path, "decompress", packed, "--model", latin_artifact, "--out", f"{small}.again")
    assert Path(f"{small}.again").read_bytes() == small.read_bytes()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((f"data.{name}", LATIN) for name in ("train", "val", "tokenizer", "cache", "column")),
        ("eval.prompts", ["The ", LATIN]),
        ("eval.prompts", ["\ud800"]),
    ],
)
def test_settings_that_no_file_can_hold(name: str, value: str | list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(name)} = .* is not UTF-8"):
        build({name: value})


@pytest.mark.parametrize(
    "entry",
    [["-m", "jepamba"], pytest.param([str(Path(sys.executable).with_name("jepamba"))], marks=pytest.mark.slow)],
)
def test_a_name_is_utf8_whatever_the_locale(tmp_path: Path, entry: list[str]) -> None:
    text = shutil.move(text_file(tmp_path), tmp_path / "café.txt")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}

    def command(*words: str) -> str:
        words = (sys.executable, *entry, *words)
        done = subprocess.run(words, env=environment, capture_output=True, check=True, cwd=tmp_path)
        assert b"udc" not in done.stdout + done.stderr
        return done.stdout.decode("ascii")

    settings = tiny(text, data__train="café.txt", data__tokenizer="bytes", train__steps=2)
    shown = command("train", preset(tmp_path, settings), "--out", "été")
    assert r"\xe9t\xe9/artifact.jepa" in shown  # the output stays ASCII
    assert load_preset(str(tmp_path / "été" / "config.toml")).data.train == "café.txt"
    assert "été" in (tmp_path / "été" / "report.html").read_text(encoding="utf-8")
    if entry[0] != "-m":
        command("resume", "été")
        shown = command("data", "build", "café.txt", "--tokenizer", "bytes", "--out", "naïve", "--json")
        assert json.loads(shown)["folder"] == "naïve"


def test_the_python_api_says_how_a_name_is_read() -> None:
    code = "import sys\nfrom jepamba.config import build\nbuild({'data.train': sys.argv[1]})"
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-c", code, "café"], env=environment, capture_output=True, check=False)
    assert b"was read as ascii, not as UTF-8 (set PYTHONUTF8=1)" in done.stderr


def test_a_current_folder_that_was_deleted_is_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", 'mkdir gone; cd gone; rmdir "$PWD"; exec "$0" -m jepamba presets', sys.executable],
        capture_output=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr == b"jepamba: the current folder was deleted; change to another\n"


def test_a_user_without_a_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: Path("~").expanduser())
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(UserError, match=r"set HOME, XDG_CACHE_HOME or data\.cache"):
        cache_folder("")
    with pytest.warns(UserWarning, match="no C\\+\\+ kernel, slower code instead: there is no home folder"):
        assert library(Path(ops.__file__).parent / "mixer" / "kernels.cpp", NONE=1) is None
