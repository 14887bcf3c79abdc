"""`jepamba completion`: bash itself completes the words that a user types."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from jepamba.cli import main
from jepamba.presets import preset_names


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["ge"], ["generate"]),
        (["train", ""], preset_names()),
        (["train", "cpu", "--train.st"], ["--train.steps"]),
        (["train", "cpu", "--model.unet", ""], ["yes", "no"]),
        (["train", "cpu", "--model.softcap", "po"], ["poly"]),
        (["train", "cpu", "--data.train", "m"], ["mine.txt"]),
        (["study", "run", "jepa-bytes-"], ["jepa-bytes-20", "jepa-bytes-240", "jepa-bytes-60"]),
        (["compress", "mine", "--model", "ru"], ["runs"]),
        (["eval", "runs/"], ["runs/mine"]),
        (["completion", ""], ["bash", "zsh"]),
    ],
)
def test_bash_completes(
    words: list[str], expected: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "mine.txt").touch()
    assert main(["completion", "bash"]) == 0
    (tmp_path / "script").write_text(capsys.readouterr().out)
    press_tab = (
        'source ./script; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        '$(complete -p jepamba | sed "s/.* -F \\([^ ]*\\) .*/\\1/") jepamba "${COMP_WORDS[COMP_CWORD]}"; '
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    command = ["bash", "--norc", "-c", press_tab, "bash", "jepamba", *words]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert ended.stdout.split() == expected


def test_zsh_has_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "zsh"]) == 0
    script = capsys.readouterr().out
    assert script.startswith("#compdef jepamba\n")
    for word in ("--train.steps", "quick-jepa", "poly", "decompress"):
        assert word in script
