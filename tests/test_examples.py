"""Each script in examples/ runs as a user runs it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PRINTED = {
    "compress_a_file.py": r"original +[\d,]+ bytes\njepamba +[\d,]+ bytes, \d\.\d{3} bits per byte\nbrotli",
    "look_at_latents.py": r"latents\.png: [\d,]+ tokens; two of \d+ directions have \d+% of the variance\n$",
    "score_and_generate.py": r"\d+\.\d{3} bits per byte of [\d,]+ bytes\nThe function .",
    "train_on_your_text.py": r"TextModel\([\d,]+ parameters[^\n]*\nThe.*\nIn.*\d\.\d{3} bits per byte\n$",
    "use_from_transformers.py": r"\d+\.\d{3} nats per token of the prompts\n.The function of a module is.*In the beg",
}
"""What the scripts print, as a pattern. `train_on_your_text.py` trains the preset `quick` for five seconds. A sample
may go on inside the last word of the prompt."""
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("examples")
    (folder / "README.md").write_bytes((ROOT / "README.md").read_bytes())
    (folder / "input.txt").write_text("\n\n".join(topics.topics.values()), encoding="utf-8")
    return folder


def test_every_example_is_tested_and_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("test_*.py"))
    for script in (ROOT / "examples").glob("*.*"):
        assert f"(examples/{script.name})" in readme
        assert f'"{script.name}"' in tests


def ended(script: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(script), *words],
        cwd=folder,
        env={**os.environ, "MPLBACKEND": "agg", "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("script", PRINTED)
def test_the_example_runs(script: str, folder: Path) -> None:
    words = ["input.txt", "5"] if script == "train_on_your_text.py" else []
    found = ended(ROOT / "examples" / script, folder, *words)
    assert found.returncode == 0, found.stderr
    assert re.search(PRINTED[script], found.stdout, re.DOTALL), found.stdout


def test_a_missing_file_is_one_line(tmp_path: Path) -> None:
    for script in PRINTED.keys() - {"score_and_generate.py", "use_from_transformers.py"}:  # which read none
        found = ended(ROOT / "examples" / script, tmp_path, "missing.txt")
        assert found.returncode == 1
        assert found.stderr.splitlines()[-1].startswith("missing.txt: no such file")
        assert "Traceback" not in found.stderr


def test_the_cells_of_the_notebook_run(tmp_path: Path) -> None:
    cells: list[dict[str, Any]] = json.loads((ROOT / "examples" / "tour.ipynb").read_text(encoding="utf-8"))["cells"]
    sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert all(not cell.get("outputs") for cell in cells)
    sources.append(sources[-1])  # the cell that trains, run again
    (tmp_path / "cells.py").write_text("\n\n".join(sources).replace('"seconds": 10.0', '"steps": 3'), encoding="utf-8")
    found = ended(tmp_path / "cells.py", tmp_path)
    assert found.returncode == 0, found.stderr
    assert len(re.findall(r"\d\.\d{3} bits per byte", found.stdout)) == 3, found.stdout
