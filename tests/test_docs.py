"""The manual is true: its commands parse, its links lead somewhere, and its lists of settings and fields are whole."""

from __future__ import annotations

import csv
import functools
import importlib.util
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, get_type_hints
from xml.etree import ElementTree

import pytest

from jepamba.cli import build_parser, main, parse
from jepamba.cli.flags import settings_from_args
from jepamba.config import Run, flatten, from_dict, to_dict, with_settings
from jepamba.errors import UserError
from jepamba.presets import load_preset
from jepamba.study.plan import load_plan
from jepamba.train import train
from tiny import text_file, tiny

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
PLACEHOLDER = re.compile(r"\b(?:PRESET|ARTIFACT|DIR|PLAN|COMMAND|TEXT)\b")


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(text: str) -> Iterator[str]:
    """The fenced code blocks of a page, lines that end in a backslash joined."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        yield block.replace("\\\n", " ")


def shown_commands() -> list[tuple[str, str, bool]]:
    """(page, command, whether it is a code span in the text) of every `jepamba` command in a block or a span."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        lines = [line.strip() for block in blocks(text) for line in block.splitlines()]
        spans = re.findall(
            r"(?<!`)`(jepamba [^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
        )
        found += [(name(page), line, False) for line in lines if line.startswith("jepamba ")]
        found += [(name(page), line, True) for line in spans]
    return list(dict.fromkeys(found))


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def script(name: str) -> ModuleType:
    """A script of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"docs/{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def maker() -> ModuleType:
    return script("make_configuration")


def test_the_pictures_of_latents_show_each_model() -> None:
    measured = {
        label: {"spectrum": [share, 1 - share, 0.0], "cosine": {"1": share, "8": 0.1}}
        for label, share in {"without JEPA": 0.75, "with JEPA": 0.5}.items()
    }
    spectrum, cosine = script("make_picture").latent_pictures(measured)
    for picture, title in ((spectrum, "Spectrum of h"), (cosine, "h over time")):
        text = " ".join(ElementTree.fromstring(picture.partition("?>")[2]).itertext())
        assert title in text
        assert "without JEPA: from 0.75 to" in text
        assert "with JEPA: from 0.5 to" in text


def test_three_pages_have_the_same_conclusion_on_jepa() -> None:
    marker = "**Conclusion so far.** "
    pages = [" ".join((ROOT / page).read_text(encoding="utf-8").split()) for page in ("README.md", "docs/objective.md")]
    text = (ROOT / "docs/results/jepa.md").read_text(encoding="utf-8")
    conclusion = text.partition(marker)[2].partition("\n\n")[0]
    assert len(re.findall(r"[a-z)]\.(?: |$)", conclusion)) == 3
    for page in pages:
        assert conclusion in page


def test_the_page_of_settings_is_current(maker: ModuleType) -> None:
    page = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")
    assert page == maker.page(), "run .venv/bin/python docs/make_configuration.py"
    for section, cls in get_type_hints(Run).items():
        for key in get_type_hints(cls):
            assert f"| `{section}.{key}` |" in page


def test_the_table_of_levers_has_every_run_of_the_notes() -> None:
    levers = script("make_levers")
    text = (ROOT / "docs/results/levers.csv").read_text(encoding="utf-8")
    assert text == levers.table(), "run .venv/bin/python docs/make_levers.py"
    notes = {path.parent.name for path in (ROOT / "docs/results").glob("*/*runs.jsonl")}
    assert set(levers.NOTES) == notes
    runs = [row for row in csv.DictReader(text.splitlines()) if row["run"].startswith("decay 1.4, 2,291,283 tokens")]
    assert [(row["seed"], row["bytes"], row["bpb_carried"]) for row in runs] == [
        ("1", "5773400", "1.67795"),
        ("2", "5768296", "1.70354"),
    ]


built_parser = functools.cache(build_parser)
"""One parser for all commands of the pages."""


@pytest.mark.parametrize(("page", "command", "span"), shown_commands())
def test_shown_commands_are_understood(page: str, command: str, span: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.cli.build_parser", built_parser)
    words = shlex.split(command, comments=True)[1:]
    words = words[: next((place for place, word in enumerate(words) if word in "<>"), None)]
    if words[-1] in ("--help", "--version"):
        with pytest.raises(SystemExit) as left:
            parse(words)
        assert left.value.code == 0
        return
    try:
        args = parse(words)
    except UserError as error:
        # The text may name a command without all that it needs, but not with a word or flag that there is not.
        if not span or not re.search(r"arguments are required|expected one argument", str(error)):
            raise
        return
    for key, loader in (("preset", load_preset), ("plan", load_plan)):
        value = getattr(args, key, None)
        if value is None or PLACEHOLDER.fullmatch(value) or value.endswith(".toml"):
            continue
        loader(value)
    settings = settings_from_args(args)
    if settings and "preset" in args:
        with_settings(load_preset(args.preset), settings)
    elif settings and "plan" in args and not args.plan.endswith(".toml"):
        load_plan(args.plan).with_common(settings)


def test_there_are_commands_to_check() -> None:
    pages = {page for page, _, _ in shown_commands()}
    assert {"README.md", "docs/commands.md", "docs/studies.md"} <= pages
    shown = {command.split()[1] for _, command, _ in shown_commands()}
    assert shown >= set(build_parser()[1]), "a command that the manual never shows"


def test_an_unknown_flag_would_be_noticed() -> None:
    with pytest.raises(UserError):
        parse(["eval", "a.jepa", "--data", "x", "--slidign", "3"])


def test_the_readme_s_training_command_builds_its_model(capsys: pytest.CaptureFixture[str]) -> None:
    command = "jepamba train cpu --data.train mytext/ --out runs/mine"
    assert command in (ROOT / "README.md").read_text(encoding="utf-8")
    assert main([*shlex.split(command)[1:], "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["parameters"]["kept"] == 1_807_048


def test_the_published_counts_are_those_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs/model.md").read_text(encoding="utf-8")
    columns: dict[str, dict[str, str]] = {}
    presets = ("quick", "cpu", "submission-bpe", "submission-byte")
    for preset in presets:
        assert main(["train", preset, "--dry-run"]) == 0
        rows = [line.rsplit(None, 1) for line in capsys.readouterr().out.splitlines()]
        counts = {row[0]: row[1] for row in rows if len(row) == 2 and row[1].replace(",", "").isdigit()}
        for part, count in counts.items():
            columns.setdefault(part, {})[preset] = count
    lines = [re.sub(r"\*| \(.*?\)", "", line) for line in page.splitlines()]
    for part, counts_of_part in columns.items():
        assert f"| {part} | {' | '.join(counts_of_part.get(preset, '0') for preset in presets)} |" in lines


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8")):
            assert set(re.findall(r"^make ([a-z-]+)", block, re.MULTILINE)) <= targets, name(page)


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name(page)} links to {target}"
        assert found.is_relative_to(ROOT), f"{name(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_page_names_a_place_on_a_machine(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(?<![\w.~-])/(?:work|home|root|tmp|Users|mnt|opt|usr|var)/|[A-Z]:\\\\|file://", text)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_settings_that_a_page_names_exist(page: Path) -> None:
    sections = get_type_hints(Run)
    text = prose(page)
    for section, key in re.findall(
        r"`(?:--)?(data|model|jepa|quant|optim|train|eval)\.([a-z_0-9]+)(?=`| [=/><*]|=)", text
    ):
        if (section, key) not in (("train", "jsonl"), ("train", "toml"), ("train", "log"), ("model", "safetensors")):
            assert key in get_type_hints(sections[section]), f"{name(page)} names {section}.{key}"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    for file in re.findall(r"tests/[\w/]+\.py", prose(page)):
        assert (ROOT / file).is_file(), f"{name(page)} names {file}"
    every = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("*.py"))
    for test in re.findall(r"`(test_\w+)`", prose(page)):
        assert f"def {test}(" in every, f"{name(page)} names {test}"


def fields(section: str) -> set[str]:
    """The names in the first column of a section's table."""
    return {
        word for line in section.splitlines() if line.startswith("| `") for word in re.findall(r"`(\w+)`", line)[:1]
    }


@pytest.fixture(scope="module")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of a small model."""
    folder = tmp_path_factory.mktemp("docs")
    text = folder / "text.txt"
    text.write_text("\0".join((ROOT / "docs" / page).read_text() for page in ("model.md", "data.md", "training.md")))
    small: dict[str, dict[str, Any]] = {
        "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 32, "cache": str(folder / "cache")},
        "model": {
            "embed_dim": 16,
            "d_model": 32,
            "n_layer": 2,
            "headdim": 16,
            "d_state": 8,
            "chunk_size": 16,
            "mlp_mult": 1.0,
        },
        "jepa": {"rollout_steps": 1, "sigreg_projections": 8, "sigreg_samples": 64},
        "train": {"steps": 3, "tokens_per_step": 128, "tokens_per_micro": 128, "val_every": 1, "val_tokens": 128}
        | {"terms_every": 1},
        "eval": {"calibrate_tokens": 128, "diagnostics_tokens": 256, "sample_tokens": 2, "prompts": ["The "]}
        | {"stride": 32, "sliding_tokens": 64},
    }
    train(from_dict(small), folder / "run", preset="small")
    return folder / "run"


def test_the_page_of_metrics_is_whole(small_run: Path) -> None:
    """A small run logs exactly the fields that the page describes."""
    summary = json.loads((small_run / "summary.json").read_text())
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    described = {
        part.split(":")[0].split("\n")[0].strip(): part for part in re.split(r"^#+ ", page, flags=re.MULTILINE)
    }
    logged: dict[str, set[str]] = {}
    for line in (small_run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        logged.setdefault(record["kind"], set()).update(record.keys() - {"kind", "step"})
    assert {f"kind = {kind}" for kind in logged} == {title for title in described if title.startswith("kind")}
    for kind, names in logged.items():
        assert fields(described[f"kind = {kind}"]) == names, kind
    assert fields(described["summary.json"]) == summary.keys()
    for key in [*summary["bpb_plain"], *summary["parameters"], *summary["environment"]]:
        assert f"`{key}`" in described["summary.json"]
    evaluation = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8")
    for section, found in summary["diagnostics"].items():
        inner = found[0] if isinstance(found, list) else found
        for key in inner if isinstance(inner, dict) else []:
            assert f"`{section}.{key}`" in evaluation or f"`{key}`" in evaluation or key == "step", f"{section}.{key}"
        assert f"`{section}" in evaluation


def test_the_example_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = ROOT / "examples/score_and_generate.py"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert script.read_text(encoding="utf-8").partition("\n\n")[2] in readme
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runpy.run_path(str(script))
    printed = capsys.readouterr().out
    assert re.match(r"\d\.\d{3} bits per byte of 51 bytes\nThe function .", printed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_the_examples_of_the_python_page_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them in order, in one namespace, with a small model in place of the preset."""
    text = text_file(tmp_path)
    (tmp_path / "mytext").mkdir()
    for index, document in enumerate(text.read_text().split("\0")):
        (tmp_path / "mytext" / f"{index}.txt").write_text(document)
    small = tiny(text)
    train(with_settings(small, {"train.keep_heads": True}), tmp_path / "runs/mine")
    monkeypatch.setattr("jepamba.api.preset_layers", lambda name: [flatten(to_dict(small))])
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs/python.md").read_text(encoding="utf-8")
    namespace: dict[str, Any] = {}
    for block in re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE):
        exec(compile(block, "docs/python.md", "exec"), namespace)
    assert namespace["state"]["counters"]["step"] == 8
    assert namespace["lm"].config.n_layer == 2
    assert 0 < float(namespace["error"]) < 100


def test_the_maker_writes_its_page(maker: ModuleType, tmp_path: Path) -> None:
    copied = tmp_path / "make_configuration.py"
    copied.write_bytes((ROOT / "docs/make_configuration.py").read_bytes())
    subprocess.run([sys.executable, str(copied)], check=True)
    assert (tmp_path / "configuration.md").read_text(encoding="utf-8") == maker.page()
