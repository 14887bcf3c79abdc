"""`jepamba push` and `pull` with a local hub: what is pushed loads again, and refusals are one line."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import jepamba
from hub_server import HubServer
from jepamba.artifact.heads import HEADS
from jepamba.artifact.locate import SHIPPED
from jepamba.artifact.store import load_artifact
from jepamba.cli import main
from jepamba.hub.card import model_card
from tiny import text_file, tiny

TEXT = "The import statement — naïve, 日本語 — binds names."
ME = "hf_mine"
# Of huggingface_hub's own upload by Git LFS.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    jepamba.train(tiny(text_file(folder), train__keep_heads=True), out=folder / "run")
    return folder / "run"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer({}) as server:
        server.accounts = {ME: "me"}
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        # The storage of the real hub; this one has Git LFS only.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", ME)
        yield server


def test_what_is_pushed_loads_again(
    run_dir: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["push", str(run_dir), "me/tiny", "--license", "cc-by-4.0", "--private", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["url"] == f"{hub.url}/me/tiny"
    files = hub.data_sets["me/tiny"]["main"]
    assert sorted(files) == sorted(printed["files"]) == sorted(["artifact.jepa", HEADS, "README.md"])
    assert hub.private == {"me/tiny"}

    before, loaded = jepamba.load(run_dir), jepamba.load("hf://me/tiny")
    assert loaded.score(TEXT).bpb == before.score(TEXT).bpb
    assert torch.equal(loaded.latents(TEXT, "z"), before.latents(TEXT, "z"))

    monkeypatch.chdir(tmp_path)
    assert main(["pull", "me/tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["out"] == "runs/tiny"
    for name, content in files.items():
        assert Path("runs/tiny", name).read_bytes() == content
    assert jepamba.load("runs/tiny").score(TEXT).bpb == before.score(TEXT).bpb
    assert main(["pull", "hf://me/tiny@main", "-o", "other"]) == 0
    assert Path("other", HEADS).read_bytes() == files[HEADS]


def test_the_card_has_figures_budget_data_and_licence(run_dir: Path, hub: HubServer) -> None:
    assert main(["push", str(run_dir), "me/tiny", "--license", "mit", "--text", "Topics of *Python's* reference"]) == 0
    card = hub.data_sets["me/tiny"]["main"]["README.md"].decode()
    summary = json.loads((run_dir / "summary.json").read_text())
    _, metadata, page = card.split("---\n", 2)
    assert yaml.safe_load(metadata)["license"] == "mit"
    assert yaml.safe_load(metadata)["library_name"] == "jepamba"
    for expected in (
        f"{summary['parameters']['kept']:,} parameters in one file of\n{summary['artifact_bytes']:,} bytes",
        f"| plain | {summary['bpb_calibrated']['bpb']:.4f} |",
        f"- Budget: {summary['steps']:,} steps, {summary['tokens']:,} tokens, ",
        "- Text: Topics of *Python's* reference\n- Licence of the text: mit\n",
        'jepamba.load("hf://me/tiny")',
        "\n## Samples\n\n    The",
    ):
        assert expected in page
    assert str(run_dir.parent) not in card


@pytest.mark.slow
def test_the_card_of_a_fine_tuned_model_names_the_models_before_it(hub: HubServer, tmp_path: Path) -> None:
    """Two parts: from the model in the package, and from the first part, which has no public name."""
    (tmp_path / "text.txt").write_text("\n\n".join(f"Line {n} of a text, which says {n * n}." for n in range(300)))
    quick: dict[str, Any] = {"train": {"steps": 1, "val_every": 0}, "eval": {"sample_tokens": 0}}
    for out, start in (("one", str(SHIPPED)), ("two", str(tmp_path / "one"))):
        sections = {**quick, "train": {**quick["train"], "init_from": start}}
        jepamba.train("quick", out=tmp_path / out, data={"train": str(tmp_path / "text.txt")}, **sections)
    notes = jepamba.load(tmp_path / "two").artifact.header["extra"]["initial"]
    first = json.loads((tmp_path / "one" / "summary.json").read_text())["artifact_sha256"]
    assert [(note["name"], note["sha256"]) for note in notes] == [
        ("", first),
        ("the small model in the package jepamba", hashlib.sha256(SHIPPED.read_bytes()).hexdigest()),
    ]
    assert main(["push", str(tmp_path / "two"), "me/tuned", "--license", "mit"]) == 0
    card = hub.data_sets["me/tuned"]["main"]["README.md"].decode()
    for expected in (
        "Training started from trained weights. Text, licence and budget are those of its last part only.\n",
        f"- Initial weights: an artifact without a public name (sha256 {first[:16]}); its text and licence: not stored",
        "- Initial weights: the small model in the package jepamba (sha256 ",
        "its text and licence: trained on free English text, half of it Wikipedia (CC BY-SA 3.0); SOURCES.md",
        "\n- Preset: `quick`, with other values of `data.byte_separator`, `optim.muon_lr`, `optim.adam_lr`, "
        "`train.steps`, `train.seconds`, `train.val_every`, `eval.sample_tokens`\n",
        "\n- Device: CPU, ",
        "`pip install .`",
    ):
        assert expected in card
    assert str(tmp_path) not in card
    assert "`model." not in card


def test_notes_of_any_shape_make_a_card() -> None:
    for notes, expected in (("text", ""), ([3], "(sha256 unknown)"), ([{"name": "a\n# b", "text": 7}], "a # b (sha")):
        artifact = load_artifact(SHIPPED)
        artifact.header["extra"]["initial"] = notes
        page = model_card("me/x", artifact, 1, license="mit", text="t", summary=None, heads=False)
        assert ("Initial weights: " in page) == (expected != "")
        assert expected in page


def test_an_update_and_an_artifact_alone(run_dir: Path, hub: HubServer, tmp_path: Path) -> None:
    """Figures that are not of this artifact stay out of its card."""
    assert main(["push", str(run_dir), "me/tiny", "--license", "mit"]) == 0
    assert "- Text: `topics.txt`\n" in hub.data_sets["me/tiny"]["main"]["README.md"].decode()
    shutil.copy(run_dir / "artifact.jepa", tmp_path)
    summary = json.loads((run_dir / "summary.json").read_text())
    (tmp_path / "summary.json").write_text(json.dumps({**summary, "artifact_sha256": "0" * 64}))
    assert main(["push", str(tmp_path / "artifact.jepa"), "hf://me/tiny", "--license", "other", "--update"]) == 0
    card = hub.data_sets["me/tiny"]["main"]["README.md"].decode()
    assert "No scores came with this artifact." in card
    assert "license: other" in card
    assert "Budget" not in card


def test_refusals_are_one_line(
    run_dir: Path, hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*words: str) -> str:
        capsys.readouterr()
        assert main(words) == 2
        shown = capsys.readouterr().err
        assert shown.count("\n") == 1
        return shown

    push = ("push", str(run_dir), "me/tiny", "--license")
    assert main([*push, "mit"]) == 0
    assert "me/tiny: this repository exists; --update adds a commit to it" in refused(*push, "mit")
    assert "the following arguments are required: --license" in refused(*push[:-1])
    shown = refused("push", str(run_dir), "me/new", "--license", "no such")
    assert 'me/new: - Error: "license" must be one of' in shown
    assert "me/new" not in hub.data_sets, "a refused card left an empty repository"
    assert "the token may not write there" in refused("push", str(run_dir), "you/tiny", "--license", "mit")
    assert "give owner/name" in refused("push", str(run_dir), "tiny", "--license", "mit")
    assert "no artifact.jepa here" in refused("push", str(tmp_path), "me/new", "--license", "mit")
    assert "there is no such model" in refused("pull", "me/none")
    assert "not the name of a model" in refused("pull", "none")
    assert "already exists; choose another folder" in refused("pull", "me/tiny", "-o", str(tmp_path))
    hub.data_sets["me/tiny"]["main"]["artifact.jepa"] = b"nonsense" * 20
    assert "artifact.jepa" in refused("pull", "me/tiny", "-o", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "the hub does not accept the token" in refused("push", str(run_dir), "me/new", "--license", "mit")
    monkeypatch.delenv("HF_TOKEN")
    assert "no token for the hub; set HF_TOKEN, or run `hf auth login`" in refused(*push, "mit")
