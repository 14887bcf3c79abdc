"""scripts/jepa_study.sh with a stub for jepamba: what is started, and what is kept, also when it is stopped."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / "scripts/jepa_study.sh"
PROGRAM = r"""#!/usr/bin/env bash
echo "$*" >> calls
out=; while [ $# -gt 0 ]; do case $1 in --out | -o) out=$2 ;; data | study | latents) verb=$1 ;; esac; shift; done
case $verb in
  data) mkdir -p "$out"; echo {} > "$out/meta.json" ;;
  latents) echo '{"effective_rank": 2}' ;;
  study)
    mkdir -p "$out/off/seed-1" "$out/both/seed-1"
    for arm in off both; do
      [ -e "$out/$arm/seed-1.json" ] || echo '{"new": 1}' > "$out/$arm/seed-1.json"
      touch "$out/$arm/seed-1/artifact.jepa"
    done
    touch "$out/both/seed-1/heads.safetensors"
    echo "data = \"$SHARDS/bpe\"" > "$out/plan.toml"
    if [ -e stop ]; then exit 130; fi
    printf 'study,arm\nthis,off\n' > "$out/runs.csv" ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the repository's parts that the script uses, with the records of another plan."""
    plans = tmp_path / "src/jepamba/study/plans"
    plans.mkdir(parents=True)
    (plans / "jepa-bpe-60.toml").touch()
    other = tmp_path / "docs/results/jepa/jepa-bytes-20"
    other.mkdir(parents=True)
    (other / "runs.csv").write_text("study,arm\nother,off\n")
    for name, text in {"program": PROGRAM, "bin/nvidia-smi": "#!/bin/sh\necho GPU 0\necho GPU 1\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return tmp_path


def start(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    given = {"CORPUS": "corpus", "SHARDS": str(folder / "shards"), "PYTHON": str(folder / "program"), **variables}
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **given}
    return subprocess.run(["bash", SCRIPT, *words], cwd=folder, env=environment, capture_output=True, text=True)


def test_records_are_kept_and_merged(folder: Path) -> None:
    kept = folder / "docs/results/jepa/jepa-bpe-60"
    (kept / "off").mkdir(parents=True)
    (kept / "off/seed-1.json").write_text('{"old": 1}')
    assert start(folder, "jepa-bpe-60", "--seeds", "5").returncode == 0
    build, run = (folder / "calls").read_text().splitlines()
    assert build.startswith("-m jepamba data build corpus/train-0.txt.xz --val corpus/val.txt.xz")
    assert run.endswith("--gpus 2 --overlap 4 --seeds 5")
    assert json.loads((kept / "off/seed-1.json").read_text()) == {"old": 1}  # the study went on from it
    assert json.loads((kept / "both/seed-1.json").read_text()) == {"new": 1}
    assert not (kept / "off/seed-1").exists()
    assert (kept / "plan.toml").read_text() == 'data = "shards/bpe"\n'
    merged = (folder / "docs/results/jepa/runs.csv").read_text().splitlines()
    assert merged == ["study,arm", "this,off", "other,off"]
    # The text is not tokenized again.
    assert start(folder, "jepa-bpe-60").returncode == 0
    assert len((folder / "calls").read_text().splitlines()) == 3


def test_records_of_a_plan_on_the_recipe_lie_beside_its_notes(folder: Path) -> None:
    (folder / "src/jepamba/study/plans/best-rates-60.toml").touch()
    assert start(folder, "best-rates-60").returncode == 0
    assert (folder / "docs/results/best-rates-60/off/seed-1.json").exists()
    assert not (folder / "docs/results/jepa/best-rates-60").exists()


def test_an_interruption_loses_no_record(folder: Path) -> None:
    (folder / "stop").touch()
    assert start(folder, "jepa-bpe-60", LATENTS="1").returncode == 130
    assert "latents" not in (folder / "calls").read_text()
    assert (folder / "docs/results/jepa/jepa-bpe-60/both/seed-1.json").exists()
    assert (folder / "docs/results/jepa/runs.csv").read_text() == "study,arm\nother,off\n"


def test_an_interruption_before_any_report_leaves_the_table_of_runs(folder: Path) -> None:
    (folder / "stop").touch()
    (folder / "docs/results/jepa/jepa-bytes-20/runs.csv").unlink()
    (folder / "docs/results/jepa/runs.csv").write_text("study,arm\nkept,off\n")
    assert start(folder, "jepa-bpe-60").returncode == 130
    assert (folder / "docs/results/jepa/runs.csv").read_text() == "study,arm\nkept,off\n"


def test_a_latent_that_cannot_be_measured_is_an_error(folder: Path) -> None:
    (folder / "program").write_text(PROGRAM.replace("""echo '{"effective_rank": 2}'""", "exit 2"))
    assert start(folder, "jepa-bpe-60", LATENTS="1").returncode == 1
    assert not list((folder / "docs/results/jepa/jepa-bpe-60").glob("latents-*"))


def test_the_latents_of_the_first_seed_are_measured(folder: Path) -> None:
    assert start(folder, "jepa-bpe-60", LATENTS="1").returncode == 0
    kept = folder / "docs/results/jepa/jepa-bpe-60"
    assert sorted(path.name for path in kept.glob("latents-*")) == [
        "latents-both-h.json",
        "latents-both-z.json",
        "latents-off-h.json",
    ]
    assert "--split val --latent z --limit 400000 --carry" in (folder / "calls").read_text()


@pytest.mark.parametrize("name", ["jepa-bpe-6", "quick-jepa-bytes"])
def test_an_unknown_plan_starts_nothing(folder: Path, name: str) -> None:
    done = start(folder, name)
    assert done.returncode == 2
    assert name in done.stderr
    assert not (folder / "calls").exists()
    assert not (folder / "docs/results/jepa" / name).exists()
