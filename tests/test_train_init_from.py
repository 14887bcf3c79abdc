"""Training from a trained model starts with its weights, its tokenizer and its heads, and says what does not fit."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import jepamba
from hub_server import HubServer, commit
from jepamba.cli import main
from jepamba.config import ConfigError
from jepamba.errors import UserError
from jepamba.presets import load_preset, preset_layers
from jepamba.train.checkpoint import checkpoints
from jepamba.train.dial import Circumstances, choose
from jepamba.train.initial_settings import run_of_layers
from tiny import preset, text_file, tiny


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a BPE, with its heads."""
    folder = tmp_path_factory.mktemp("first")
    jepamba.train(
        tiny(text_file(folder), data__tokenizer="bpe", data__vocab=600, train__keep_heads=True), out=folder / "run"
    )
    return folder / "run"


def other_text(folder: Path) -> str:
    (folder / "input.txt").write_text("\n\n".join(f"Line {n} of another text, which says {n * n}." for n in range(300)))
    return str(folder / "input.txt")


def settings(folder: Path, **more: Any) -> str:
    """A preset file whose model and tokenizer are other ones than those of `first`."""
    return preset(folder, tiny(Path(other_text(folder)), data__tokenizer="bytes", model__n_layer=3, **more))


def test_the_first_step_is_taken_from_the_weights_of_the_artifact(first: Path, tmp_path: Path) -> None:
    lr = {"muon_lr": 1e-9, "adam_lr": 1e-9}
    tuned = jepamba.train(
        settings(tmp_path), out=tmp_path / "tuned", optim=lr, train={"init_from": str(first), "steps": 1}
    )
    before, after = jepamba.load(first), jepamba.load(checkpoints(tmp_path / "tuned" / "checkpoints")[-1])
    assert tuned.tokenizer.fingerprint == before.tokenizer.fingerprint
    assert tuned.config == before.config
    for name, weight in before.model.state_dict().items():
        torch.testing.assert_close(after.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    for name, weight in before.heads.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            torch.testing.assert_close(after.heads.state_dict()[name], weight, rtol=1e-4, atol=1e-6)
    log = (tmp_path / "tuned" / "metrics.jsonl").read_text()
    assert f"initial weights and JEPA heads: {first} (sha256 " in log
    recorded = load_preset(str(tmp_path / "tuned" / "config.toml"))
    assert (recorded.model.n_layer, recorded.data.tokenizer, recorded.train.init_from) == (2, "bpe", str(first))
    assert recorded.data.vocab == before.tokenizer.vocab_size


def test_the_command_has_a_short_flag_and_resume_starts_again(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["train", settings(tmp_path), "--init-from", str(first / "artifact.jepa"), "--out", str(tmp_path / "run")]
    assert main([*words, "--dry-run"]) == 0
    assert main(words) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    # Without a checkpoint a resumed run starts again from the same weights.
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    moved = shutil.copytree(first, tmp_path / "moved")
    assert main(["resume", str(tmp_path / "run"), "--train.init_from", str(moved)]) == 0
    again = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert again["artifact_sha256"] == summary["artifact_sha256"]
    assert f"initial weights and JEPA heads: {moved}" in (tmp_path / "run" / "metrics.jsonl").read_text()


def rates(out: Path) -> tuple[float, float]:
    optim = load_preset(str(out / "config.toml")).optim
    return optim.muon_lr, optim.adam_lr


def test_the_rates_of_a_preset_are_lowered_unless_they_are_given(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, start = settings(tmp_path, optim__muon_lr=0.03, optim__adam_lr=0.01), ["--init-from", str(first)]
    out = tmp_path / "run"
    assert main(["train", file, *start, "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)["choices"]
    assert planned["optim.muon_lr"]["value"] == pytest.approx(0.0015)
    assert main(["train", file, *start, "--out", str(out)]) == 0
    assert rates(out) == pytest.approx((0.0015, 0.0005))
    said = "optim.muon_lr = 0.0015: 0.03 / 20, as the initial weights are trained"
    assert said in capsys.readouterr().err
    assert said in (out / "metrics.jsonl").read_text()
    # A resumed run, with a larger budget too, and a run from its config.toml keep them.
    assert main(["resume", str(out), "--train.steps", "9"]) == 0
    assert rates(out) == pytest.approx((0.0015, 0.0005))
    assert main(["train", str(out / "config.toml"), "--out", str(tmp_path / "again")]) == 0
    assert rates(tmp_path / "again") == pytest.approx((0.0015, 0.0005))
    # Flags, overlays and sections of Python give them; without initial weights the preset does.
    overlay = tmp_path / "overlay.toml"
    overlay.write_text("[optim]\nadam_lr = 0.007\n")
    run, lowered = run_of_layers(*preset_layers(f"{file}+{overlay}"), {"train.init_from": str(first)})
    assert (run.optim.muon_lr, run.optim.adam_lr) == pytest.approx((0.0015, 0.007))
    assert [choice.name for choice in lowered] == ["optim.muon_lr"]
    run, lowered = run_of_layers(*preset_layers(file), {"train.init_from": str(first), "optim.muon_lr": 0.03})
    assert (run.optim.muon_lr, run.optim.adam_lr) == pytest.approx((0.03, 0.0005))
    assert run_of_layers(*preset_layers(file))[0] == load_preset(file)
    # A rate that the dial would choose for random weights is no longer its choice.
    run, _ = run_of_layers(*preset_layers("best"), {"train.init_from": str(first)})
    assert run.optim.muon_lr == pytest.approx(0.001)
    assert "optim.muon_lr" not in run.train.dial


def test_the_initial_weights_are_not_decayed_as_random_ones(first: Path, tmp_path: Path) -> None:
    start, name = {"train.init_from": str(first), "train.steps": 100}, "optim.muon_weight_decay"

    def decay(given: dict[str, Any], text_tokens: int = 10**6) -> float:
        run, _ = run_of_layers(*preset_layers("cpu"), given)
        found = {choice.name: choice.value for choice in choose(run, Circumstances(text_tokens, False))}
        if "train.init_from" in given:
            assert found["optim.adam_weight_decay"] == 0.05
        return float(found[name])

    assert decay({"train.steps": 100}) == 0.75
    assert decay(start) == decay({**start, "optim.muon_lr": 0.02}) == decay({**start, "optim.muon_lr": 1e-9}) == 0.04
    # So also where a run from random weights has less than its rule asks for.
    assert decay({**start, "train.steps": 10_000, "optim.muon_lr": 0.02}, 10**9) == 0.04


def test_fine_tuning_improves_the_model_and_shows_both_scores(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["train", settings(tmp_path), "--init-from", str(first), "--train.steps", "60", "--out", str(out)]
    assert main(words) == 0
    printed = capsys.readouterr()
    summary = json.loads((out / "summary.json").read_text())
    before, after = summary["bpb_initial"], summary["bpb_plain"]["bpb"]
    assert after < before - 0.05
    assert f"before training, validation {before:.4f} BPB" in printed.err
    assert re.search(rf"before training, plain windows +{before:.4f} BPB\nplain windows +{after:.4f} BPB", printed.out)
    # The score before training is that of the artifact that it starts from, on the whole held-out text.
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    scored = [record for record in records if record["kind"] == "val"]
    assert [record["step"] for record in scored] == [0, 60]
    assert scored[0]["tokens"] == summary["bpb_plain"]["tokens"]
    still = {"muon_lr": 0.0, "adam_lr": 0.0}
    off = {"weight": 0.0, "sigreg_weight": 0.0}
    same = jepamba.train(
        settings(tmp_path), out=tmp_path / "same", optim=still, jepa=off, train={"init_from": str(first), "steps": 1}
    )
    unchanged = json.loads((tmp_path / "same" / "summary.json").read_text())
    assert unchanged["bpb_initial"] == pytest.approx(before)
    assert unchanged["bpb_plain"]["bpb"] == pytest.approx(before, abs=1e-3)
    assert same.tokenizer.fingerprint == jepamba.load(first).tokenizer.fingerprint


def test_what_does_not_fit_is_refused(first: Path, tmp_path: Path) -> None:
    def refused(match: str, kind: type[Exception] = UserError, **sections: dict[str, Any]) -> None:
        sections["train"] = {"init_from": str(first), **sections.get("train", {})}
        with pytest.raises(kind, match=match):
            jepamba.train(settings(tmp_path), out=tmp_path / "no", **sections)
        assert not (tmp_path / "no" / "config.toml").exists()  # the corrected command can use the folder
        shutil.rmtree(tmp_path / "no", ignore_errors=True)

    refused("differs in shape; leave model", model={"d_state": 16})
    refused("trained with jepa.predictor_mult = ", jepa={"predictor_mult": 3})
    refused("trained with jepa.layer = 0, this run has 1", jepa={"layer": 1})
    refused("it is that of the initial weights", ConfigError, data={"tokenizer": "some.model"})
    refused("no artifact.jepa here", train={"init_from": str(tmp_path)})
    # Heads that were not kept, or that the new run does not have, are no obstacle.
    shutil.copy(first / "artifact.jepa", tmp_path)
    jepamba.train(settings(tmp_path), out=tmp_path / "new", train={"init_from": str(tmp_path / "artifact.jepa")})
    assert "JEPA heads: random" in (tmp_path / "new" / "metrics.jsonl").read_text()
    off = {"weight": 0.0, "sigreg_weight": 0.0}
    jepamba.train(settings(tmp_path), out=tmp_path / "off", jepa=off, train={"init_from": str(first)})


def test_weights_from_the_hub_are_pinned_and_resume_needs_no_hub(
    first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {name: (first / name).read_bytes() for name in ("artifact.jepa", "heads.safetensors")}
    with HubServer({"some/model": {"main": files}}) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        out = tmp_path / "run"
        assert main(["train", settings(tmp_path), "--init-from", "hf://some/model", "--out", str(out)]) == 0
        asked = len(hub.requests)
        assert load_preset(str(out / "config.toml")).train.init_from == f"hf://some/model@{commit(files)}"
        summary = json.loads((out / "summary.json").read_text())
        # From the newest checkpoint, and, without one, again from the weights and heads of the hub.
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert main(["resume", str(out)]) == 0
        shutil.rmtree(out / "checkpoints")
        assert main(["resume", str(out)]) == 0
        assert len(hub.requests) == asked
    assert json.loads((out / "summary.json").read_text())["artifact_sha256"] == summary["artifact_sha256"]
