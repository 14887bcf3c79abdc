"""The kept inputs, and fresh ones for each reader that takes its file for hostile (see `make fuzz`)."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from fuzz.readers import ArtifactReader, CompressedReader
from jepamba.errors import UserError

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.parametrize("count", [5, pytest.param(1000, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_mutated_files_are_read_or_refused(count: int) -> None:
    """In processes of their own: the checks of this one's imports would count as code that a file ran."""
    seed = secrets.randbelow(10**9)
    found = subprocess.run(
        [sys.executable, "-m", "tests.fuzz", "--replay", "--count", str(count), "--seed", str(seed), "--jobs", "1"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, f"seed {seed}:\n{found.stderr}\n{found.stdout}"
    for reader in ("artifact", "shard", "tokenizer", "checkpoint", "heads", "compressed"):
        kept = len(list((ROOT / "tests/fuzz/corpus" / reader).iterdir()))
        assert kept >= 4
        assert f"| {reader} | {count + kept:,} |" in found.stdout, "not every input was read"


def test_the_files_of_the_corpus_have_the_present_format(tmp_path: Path) -> None:
    """Files of an earlier format would all be refused alike, and their damage never met."""
    corpus, artifacts = ROOT / "tests/fuzz/corpus", ArtifactReader(tmp_path)
    for reader in (artifacts, CompressedReader(corpus / "model.jepa")):
        reader.read(corpus / reader.name / "read")
    for damaged in {*(corpus / artifacts.name).iterdir()} - {corpus / artifacts.name / "read"}:
        with pytest.raises(UserError) as refused:
            artifacts.read(damaged)
        assert "format version" not in str(refused.value)
        assert "unknown codec" not in str(refused.value)


def test_what_a_reader_must_not_do_is_noticed(tmp_path: Path) -> None:
    """The guard itself: a reader that runs code, writes, takes memory, spins or breaks is caught."""
    script = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.fuzz import guard
from jepamba.errors import UserError

class Odd:
    name, seeds = "odd", [{{"a": b"sound"}}]
    def read(self, folder):
        word = (folder / "a").read_text()
        if word == "exec": exec("1")
        if word == "write": (folder / "b").write_text("x")
        if word == "elsewhere": open("/etc/hostname")
        if word == "import": import this_does_not_exist
        if word == "memory": len(bytearray(os.urandom(8)) * (1 << 20))
        if word == "much": bytearray(1 << 40)
        if word == "spin":
            while __import__("time").process_time() < start + 0.3: pass
        if word == "two lines": raise UserError("a\\nb")
        if word == "refuse": raise UserError("no 17")
        if word == "crash": raise KeyError(word)

guard.SECONDS = 0.2
import time; start = time.process_time() + 1e9
found = guard.Guard(Odd(), Path({str(tmp_path)!r}))
start = time.process_time()
for word in ("sound", "refuse", "exec", "write", "elsewhere", "import", "memory", "much", "two lines", "crash", "spin"):
    start = time.process_time()
    print(word, found.run({{"a": word.encode()}}).kind)
"""
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.splitlines() == [
        "sound read", "refuse refused", "exec code", "write code", "elsewhere code", "import crash", "memory memory",
        "much crash", "two lines crash", "crash crash", "spin hang",
    ], ended.stderr  # fmt: skip
