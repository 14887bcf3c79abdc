"""lm-eval from PyPI, with tasks over real text: its figures are those of jepamba."""

from __future__ import annotations

import importlib
import json
import math
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import jepamba
from jepamba.cli import main
from tiny import text_file, tiny

ROOT = Path(__file__).resolve().parents[1]
TEXTS = [(ROOT / "docs" / page).read_text(encoding="utf-8") for page in ("model.md", "data.md")]
CONTEXT = TEXTS[0][:700] + " The"
CHOICES = [" model reads naïve text", " 日本語", " x"]
PROMPTS = ["The import statement", "A class definition"]
ROLLING = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "bits_per_byte"}],
}
CHOOSING = {
    "output_type": "multiple_choice",
    "doc_to_text": "{{context}}",
    "doc_to_choice": "choices",
    "doc_to_target": 0,
    "target_delimiter": "",
    "metric_list": [{"metric": "acc"}],
}
pytestmark = pytest.mark.slow


class Evaluated(NamedTuple):
    """A run and what lm-eval found of it: metrics and samples by task."""

    run_dir: Path
    carry: bool
    stop: str
    results: dict[str, dict[str, float]]
    samples: dict[str, list[dict[str, Any]]]


def lm_eval(folder: Path, tasks: dict[str, tuple[dict[str, Any], list[Any]]], arguments: str) -> Any:
    """Run `python -m jepamba.lm_eval` with `tasks`, each with its documents, and their results in `folder`."""
    for name, (task, docs) in tasks.items():
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(doc) + "\n" for doc in docs), encoding="utf-8")
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **task}), encoding="utf-8")
    words = ["--model", "jepamba", *(["--model_args", arguments] if arguments else []), "--tasks", ",".join(tasks)]
    words += ["--include_path", str(folder), "--output_path", str(folder), "--log_samples"]
    environment = {**os.environ, "HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "jepamba.lm_eval", *words]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module", params=["bytes", "bpe", "bpe-carry"])
def evaluated(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evaluated:
    """A small run, on which lm-eval runs a task of each kind."""
    folder = tmp_path_factory.mktemp("lm-eval")
    tokenizer, _, carry = request.param.partition("-")
    lm = jepamba.train(tiny(text_file(folder), data__tokenizer=tokenizer, data__vocab=600), out=folder / "run")
    stop = lm.generate(PROMPTS[0], 24, temperature=0)[5:7]
    until = {
        "output_type": "generate_until",
        "doc_to_text": "{{prompt}}",
        "doc_to_target": "none",
        "generation_kwargs": {"until": [stop, "never there"], "max_gen_toks": 24},
        "metric_list": [{"metric": "exact_match"}],
    }
    choices = [lm.generate(CONTEXT, 3, temperature=0), *CHOICES]
    tasks: dict[str, tuple[dict[str, Any], list[Any]]] = {
        "one": (ROLLING, [{"text": TEXTS[0]}]),
        "several": (ROLLING, [{"text": text} for text in [*TEXTS, ""]]),
        "choosing": (CHOOSING, [{"context": context, "choices": choices} for context in (CONTEXT, "")]),
        "until": (until, [{"prompt": prompt} for prompt in PROMPTS]),
    }
    ended = lm_eval(folder, tasks, f"artifact={folder / 'run'}{',carry=True' if carry else ''}")
    assert ended.returncode == 0, ended.stderr
    results = json.loads(next(folder.rglob("results_*.json")).read_text())["results"]
    samples = {
        name: [json.loads(line) for line in next(folder.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in tasks
    }
    return Evaluated(folder / "run", bool(carry), stop, results, samples)


def test_rolling_log_likelihood_is_the_bpb_of_eval(
    evaluated: Evaluated, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "page.txt").write_text(TEXTS[0], encoding="utf-8", newline="")
    flags = ["--carry"] if evaluated.carry else []
    assert main(["eval", str(evaluated.run_dir), "--data", str(tmp_path / "page.txt"), "--json", *flags]) == 0
    expected = json.loads(capsys.readouterr().out)["bpb"]
    assert evaluated.results["one"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-4)


def test_several_documents_are_weighted_by_their_bytes(evaluated: Evaluated) -> None:
    """And an empty one has no bits."""
    scores = jepamba.load(evaluated.run_dir).score(TEXTS, carry=evaluated.carry)
    expected = sum(score.bpb * score.bytes for score in scores) / sum(score.bytes for score in scores)
    assert evaluated.results["several"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-4)


def test_log_likelihood_of_continuations(evaluated: Evaluated) -> None:
    """They have the bits that text with context has more than the context alone."""
    lm = jepamba.load(evaluated.run_dir)
    for sample in evaluated.samples["choosing"]:
        context, choices = sample["doc"]["context"], sample["doc"]["choices"]
        scores = lm.score([context + text for text in choices], carry=True)
        # A tokenizer may cut the text elsewhere once the continuation follows: count the tokens of the context alone.
        tokens = len(lm.encode(context)) - 1
        expected = [-math.log(2) * score.token_bits[tokens:].sum() for score in scores]
        found = [(float(value), str(greedy) == "True") for ((value, greedy),) in sample["resps"]]
        assert [value for value, _ in found] == pytest.approx(expected, rel=1e-4)
        assert [greedy for _, greedy in found] == [context == CONTEXT, False, False, False]


def test_generation_ends_at_a_stopping_text(evaluated: Evaluated) -> None:
    lm = jepamba.load(evaluated.run_dir)
    for sample in evaluated.samples["until"]:
        whole = lm.generate(sample["doc"]["prompt"], 24, temperature=0)
        assert sample["resps"][0][0] == whole.partition(evaluated.stop)[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("artifact=missing.jepa", "missing.jepa"),
        ("depth=3,artifact=missing.jepa", "--model_args: unknown depth; the arguments are artifact and carry"),
        ("carry=perhaps", "--model_args: carry=perhaps: must be True or False"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, arguments: str, message: str) -> None:
    ended = lm_eval(tmp_path, {"one": (ROLLING, [{"text": "x"}])}, arguments)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"jepamba: {message}")
    assert "Traceback" not in ended.stderr


def test_without_an_artifact_it_is_the_model_in_the_package(tmp_path: Path) -> None:
    ended = lm_eval(tmp_path, {"one": (ROLLING, [{"text": TEXTS[0]}])}, "")
    assert ended.returncode == 0, ended.stderr
    assert "jepamba: no ARTIFACT given: the small model in the package" in ended.stderr
    results = json.loads(next(tmp_path.rglob("results_*.json")).read_text())["results"]
    expected = jepamba.load(device="cpu").score(TEXTS[0]).bpb
    assert results["one"]["bits_per_byte,none"] == pytest.approx(expected, abs=1e-4)


def test_the_entry_point_is_the_class() -> None:
    """The group and the form that lm-eval's plugin guide names."""
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["lm_eval.models"]
    module, _, name = declared["jepamba"].partition(":")
    from lm_eval.api.registry import get_model

    assert getattr(importlib.import_module(module), name) is get_model("jepamba")
