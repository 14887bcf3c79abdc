"""No output channel ends or fails a command whose work is sound: closed, full, unread, or without a character."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from processes import Running, records
from tiny import preset, text_file, tiny

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
STEPS = 30


def shell(redirection: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """`jepamba WORDS` with the redirection of a shell."""
    command = ["sh", "-c", f'"$0" -m jepamba "$@" {redirection}', sys.executable, *words]
    return subprocess.run(command, capture_output=True, env=os.environ | environment, timeout=60, check=False)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def run(text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run."""
    folder = tmp_path_factory.mktemp("run")
    with Running(["train", preset(folder, tiny(text)), "--out", str(folder / "out")], folder) as running:
        assert running.wait() == [0]
    return folder / "out"


@pytest.mark.parametrize("words", [["presets"], ["presets", "quick", "--json"], ["train", "--help"]])
@pytest.mark.parametrize(
    "environment",
    [
        ASCII,
        pytest.param({"PYTHONIOENCODING": "ascii"}, marks=pytest.mark.slow),
        {"PYTHONIOENCODING": "latin-1:strict"},
    ],
)
def test_what_an_encoding_lacks_is_escaped(words: list[str], environment: dict[str, str]) -> None:
    expected, done = shell("", *words, PYTHONIOENCODING="utf-8"), shell("", *words, **environment)
    encoding = "latin-1" if "latin-1:strict" in environment.values() else "ascii"
    assert done.stdout == expected.stdout.decode().encode(encoding, "backslashreplace")
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    "redirection",
    [
        "<&- >&- 2>&-",
        "2>/dev/full",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ["<&- >&-", "<&- 2>&-", ">/dev/null"]),
    ],
)
def test_a_channel_that_is_closed_or_full_is_no_error(redirection: str) -> None:
    done = shell(redirection, "presets")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"best") == (">&-" not in redirection.split() and ">/dev/null" not in redirection)
    refused = shell(redirection, "train", "no-such-preset")
    # A message never lands among the results.
    assert (refused.returncode, refused.stdout) == (2, b"")


def test_no_file_gets_the_number_of_a_closed_channel(tmp_path: Path) -> None:
    code = (
        "import os, sys; from jepamba.cli.streams import prepare_streams; prepare_streams()\n"
        "with open(sys.argv[1], 'wb') as file: [os.write(number, b'message') for number in (1, 2)]"
    )
    subprocess.run(["sh", "-c", '"$@" <&- >&- 2>&-', "sh", sys.executable, "-c", code, tmp_path / "file"], check=True)
    assert (tmp_path / "file").read_bytes() == b""


def test_results_that_cannot_be_printed_are_one_line(run: Path) -> None:
    done = shell(">/dev/full", "presets")
    assert (done.returncode, done.stderr) == (2, b"jepamba: No space left on device\n")


@pytest.mark.parametrize(
    "channels",
    [
        "2:full",
        "1:closed 2:closed",
        *(pytest.param(case, marks=pytest.mark.slow) for case in ("2:unread", "2:closed", "2:terminal")),
    ],
)
def test_a_run_outlives_its_log(text: Path, tmp_path: Path, channels: str) -> None:
    words = ["train", preset(tmp_path, tiny(text, train__steps=STEPS)), "--out", str(tmp_path / "out")]
    with Running(words, tmp_path, environment={"CHANNELS": channels}, setup="faulty:channels") as running:
        assert running.wait() == [0]
        assert "Traceback" not in running.output()
    assert [record["step"] for record in records(tmp_path / "out")] == list(range(1, STEPS + 1))
    assert (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(
    ("channel", "reason"),
    [("full", "No space left on device"), pytest.param("unread", "Broken pipe", marks=pytest.mark.slow)],
)
def test_work_that_is_on_disk_does_not_fail_for_want_of_its_summary(
    run: Path, tmp_path: Path, channel: str, reason: str
) -> None:
    artifact, file = str(run / "artifact.jepa"), tmp_path / "file"
    file.write_bytes(b"some words")
    packed, back = tmp_path / "packed", tmp_path / "back"
    for words, results in (
        (["resume", str(run)], run),
        (["compress", str(file), "--model", artifact, "-o", str(packed)], packed),
        (["decompress", str(packed), "--model", artifact, "-o", str(back), "--json"], back),
        (["data", "build", str(file), "--tokenizer", "bytes", "--val", str(file), "--out"], tmp_path / "shards"),
    ):
        folder = tmp_path / words[0]
        words += [str(results)] * (words[-1] == "--out")
        with Running(words, folder, environment={"CHANNELS": f"1:{channel}"}, setup="faulty:channels") as running:
            assert running.wait() == [0], running.output()
        assert running.last_words() == f"jepamba: standard output: {reason}; the results are in {results}"
    assert back.read_bytes() == b"some words"
