"""The file of JEPA heads: a round trip, a run that keeps them, and files that are not its own."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from jepamba.artifact.heads import HEADS, load_heads, save_heads
from jepamba.config import ConfigError, Jepa
from jepamba.errors import UserError
from jepamba.io import sha256_of
from jepamba.jepa import JepaHeads
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.run_folder import train
from tiny import text_file, tiny

SHA, D_MODEL = "ab" * 32, 8
HEADER = {"version": 1, "artifact_sha256": SHA, "projector": "linear", "predictor_mult": 2, "rollout_steps": 4}


def write(path: Path, header: dict[str, Any] = HEADER, **changed: Tensor) -> Path:
    """A file of linear heads with `header`, and `changed` instead of its own tensors."""
    state = JepaHeads(Jepa(predictor_mult=2), D_MODEL).state_dict()
    path.write_bytes(save(state | changed, {"jepamba_heads": json.dumps(header)}))
    return path


def refusal(path: Path, d_model: int = D_MODEL) -> str:
    """The one line of the error for the file `path`."""
    with pytest.raises(UserError) as caught:
        load_heads(path, d_model, SHA)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("projector", ["linear", "mlp-layernorm", "mlp-batchnorm", "batchnorm", "none"])
def test_loaded_heads_compute_what_the_saved_ones_do(tmp_path: Path, projector: Any) -> None:
    config = Jepa(projector=projector, predictor_mult=2, rollout_steps=4, layer=3, action=True, target_tokens=2)
    heads = JepaHeads(config, D_MODEL)
    with torch.no_grad():
        for parameter in heads.parameters():
            parameter += torch.randn_like(parameter)
    heads.project(torch.randn(2, 9, D_MODEL) + 3)  # moves the running statistics of BatchNorm
    save_heads(tmp_path / HEADS, heads, config, SHA)
    random_state = torch.get_rng_state()
    loaded = load_heads(tmp_path / HEADS, D_MODEL, SHA)
    assert loaded.config == config
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    heads.eval()
    h_BTD = torch.randn(3, 5, D_MODEL)
    z_BTE = loaded.project(h_BTD)
    assert torch.equal(z_BTE, heads.project(h_BTD))
    ours, theirs = loaded.rollout(z_BTE, h_BTD), heads.rollout(z_BTE, h_BTD)
    assert len(ours) == 4
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_a_run_keeps_its_last_heads_and_the_same_artifact(tmp_path: Path) -> None:
    text = text_file(tmp_path)
    summary = train(tiny(text, train__keep_heads=True), tmp_path / "kept")
    train(tiny(text), tmp_path / "plain")
    artifact = tmp_path / "kept" / "artifact.jepa"
    assert not (tmp_path / "plain" / HEADS).exists()
    assert artifact.read_bytes() == (tmp_path / "plain" / "artifact.jepa").read_bytes()
    assert summary["artifact_bytes"] == artifact.stat().st_size
    heads = load_heads(tmp_path / "kept" / HEADS, 32, sha256_of(artifact, "the artifact")).state_dict()
    tensors, _ = load_checkpoint(checkpoints(tmp_path / "kept" / "checkpoints")[-1])
    trained = {name: value for name, value in tensors.items() if name.startswith("weights/heads.")}
    assert trained.keys() == {f"weights/heads.{name}" for name in heads}
    assert all(torch.equal(value, trained[f"weights/heads.{name}"]) for name, value in heads.items())


def test_keeping_heads_that_do_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keep_heads = true, but jepa\.weight and jepa\.sigreg_weight are 0"):
        tiny(text_file(tmp_path), train__keep_heads=True, jepa__weight=0.0, jepa__sigreg_weight=0.0)


def test_the_files_of_the_refusals_below_are_valid_otherwise(tmp_path: Path) -> None:
    found = load_heads(write(tmp_path / HEADS), D_MODEL, SHA).config
    assert found == Jepa(predictor_mult=2, rollout_steps=4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"artifact_sha256": "cd" * 32}, "belongs to another artifact"),
        ({"version": 3}, "version 3; this program reads versions 1 to 2"),
        ({"version": 0}, "version 0; this program reads versions 1 to 2"),
        ({"version": 2}, "'layer'"),
        ({"version": 2, "layer": -1}, "'layer' = -1"),
        ({"version": 2, "layer": 0}, "'action'"),
        ({"version": 2, "layer": 0, "action": False}, "'target_tokens'"),
        ({"version": 2, "layer": 0, "action": False, "target_tokens": 0}, "target_tokens = 0: must be at least 1"),
        ({"version": 2, "layer": 0, "action": True, "target_tokens": 1}, "not torch.float32 of shape (16, 16)"),
        ({"projector": "mlp-layernorm"}, "its tensors are not those of its settings"),
        ({"projector": "os.system"}, "its projector is none of linear, mlp-layernorm, mlp-batchnorm, batchnorm, none"),
        ({"predictor_mult": 3}, "not torch.float32 of shape"),
        ({"predictor_mult": 1 << 16}, "not torch.float32 of shape"),
        ({"predictor_mult": 1 << 62}, "'predictor_mult'"),
        ({"predictor_mult": True}, "'predictor_mult' of the wrong type"),
        ({"rollout_steps": 0}, "rollout_steps = 0"),
        ({"rollout_steps": None}, "'rollout_steps' of the wrong type"),
    ],
)
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    assert message in refusal(write(tmp_path / HEADS, HEADER | change))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.ones(8, 7), "of shape (8, 7), not torch.float32 of shape (8, 8)"),
        (torch.ones(8, 8).half(), "is torch.float16"),
        (torch.full((8, 8), torch.nan), "not finite"),
    ],
)
def test_a_tensor_that_does_not_fit_is_refused(tmp_path: Path, tensor: Tensor, message: str) -> None:
    assert message in refusal(write(tmp_path / HEADS, **{"projector.weight": tensor}))


def test_heads_of_another_size_are_refused(tmp_path: Path) -> None:
    assert "not torch.float32 of shape (16, 16)" in refusal(write(tmp_path / HEADS), d_model=16)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / HEADS)
    sound = path.read_bytes()
    tensors = load(sound)
    for damaged in (b"", sound[:7], sound[:-1], sound + b"\0", b"\xff" * 8 + sound[8:]):
        path.write_bytes(damaged)
        assert "safetensors cannot read it" in refusal(path)
    torch.save(tensors, path)  # a pickle
    assert "safetensors cannot read it" in refusal(path)
    save_file(tensors, path)
    assert "its metadata has no 'jepamba_heads'" in refusal(path)
    path.write_bytes(save(tensors, {"jepamba_heads": "[" * 100_000}))
    assert "nested too deeply" in refusal(path)
    path.unlink()
    assert "cannot read the heads" in refusal(path)
    os.mkfifo(path)
    assert "not a regular file" in refusal(path)
