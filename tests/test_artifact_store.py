"""Saving and loading: the loaded model is the live one to the bit, and the file holds what it should."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jepamba.artifact import estimate_bytes, inspect, load_artifact, save_artifact
from jepamba.artifact.container import open_container
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.presets import load_preset
from jepamba.quant import IntQuantizer
from jepamba.text import ByteTokenizer, SentencePieceTokenizer, Tokenizer, train_bpe

TEXT = ["The quick brown fox jumps over the lazy dog.", "A small text: 12 words, and then — some more!"] * 20


@pytest.fixture(scope="module")
def bpe() -> SentencePieceTokenizer:
    return train_bpe(TEXT, 300)


def small_run(tokenizer: Tokenizer, quant: Quant | None = None, **model: Any) -> Run:
    settings: dict[str, Any] = {
        "embed_dim": 24,
        "d_model": 32,
        "n_layer": 3,
        "d_state": 8,
        "headdim": 16,
        "mlp_mult": 2.0,
    }
    return Run(
        data=Data(tokenizer="bytes" if tokenizer.kind == "bytes" else "bpe", seq_len=40),
        model=Model(vocab_size=tokenizer.vocab_size, **(settings | model)),
        quant=quant or Quant(large=512),
        train=Train(steps=1, tokens_per_step=40, tokens_per_micro=40),
    )


def shaken_model(run: Run) -> LanguageModel:
    """A model none of whose parameters is at its initial value, as after training."""
    model = LanguageModel(run.model, run.quant)
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def logits_of(model: LanguageModel, vocab: int) -> torch.Tensor:
    tokens = torch.randint(vocab, (2, 70), generator=torch.Generator().manual_seed(1))
    reset = torch.rand(2, 70, generator=torch.Generator().manual_seed(2)) < 0.1
    model.eval()
    with torch.no_grad():
        h, _ = model(tokens, reset)
        return model.logits(h)


FIRST = [(0, "relu2", 5), (1, "swiglu", 4), (2, "swiglu", 4), (3, "relu2", 5)]
"""Every way of tying with every MLP, number of bits and tokenizer, once or twice."""


@pytest.mark.parametrize(
    ("tie", "mlp", "bits"),
    [
        pytest.param(*case, marks=() if case in FIRST else pytest.mark.slow)
        for case in itertools.product(range(4), ("relu2", "swiglu"), (4, 5, 6))
    ],
)
def test_live_and_loaded_logits_are_equal_to_the_bit(
    tmp_path: Path, bpe: SentencePieceTokenizer, tie: Any, mlp: Any, bits: Any
) -> None:
    tokenizer = ByteTokenizer() if (tie + bits) % 2 else bpe
    # The submission's formats take turns with ours, so that every quantizer is used.
    old = bits == 5
    quant = Quant(bits=bits, large=512, fp8_scale="none" if old else "row", vectors="fp8" if old else "bf16")
    run = small_run(tokenizer, quant, tie=tie, mlp=mlp)
    model = shaken_model(run)
    save_artifact(tmp_path / "a.jepa", model, run, tokenizer)
    artifact = load_artifact(tmp_path / "a.jepa")
    assert not artifact.model.training
    assert {f"int{bits}", "fp8" if old else "fp8-row", "bf16", "fp32"} <= {
        weight.quantizer.name for weight in artifact.model.quant_weights().values()
    }
    assert torch.equal(logits_of(model, tokenizer.vocab_size), logits_of(artifact.model, tokenizer.vocab_size))


def test_everything_else_comes_back(tmp_path: Path, bpe: SentencePieceTokenizer) -> None:
    run = small_run(bpe)
    path = tmp_path / "a.jepa"
    size = save_artifact(path, shaken_model(run), run, bpe, 0.93, {"note": "ünïcode", "steps": 7})
    assert size == path.stat().st_size
    artifact = load_artifact(path)
    assert artifact.temperature == 0.93
    assert artifact.header["extra"] == {"note": "ünïcode", "steps": 7}
    assert artifact.run.model == run.model
    assert artifact.run.quant == run.quant
    assert (artifact.run.data.seq_len, artifact.run.data.reset) == (40, True)
    assert artifact.tokenizer.fingerprint == bpe.fingerprint
    assert artifact.tokenizer.encode("The lazy dog").tolist() == bpe.encode("The lazy dog").tolist()


@pytest.mark.parametrize("separator", [True, False])
def test_a_byte_tokenizer_keeps_its_separator(tmp_path: Path, separator: bool) -> None:
    tokenizer = ByteTokenizer(separator)
    run = small_run(tokenizer)
    save_artifact(tmp_path / "a.jepa", shaken_model(run), run, tokenizer)
    artifact = load_artifact(tmp_path / "a.jepa")
    assert artifact.tokenizer.separator == separator
    assert artifact.run.data.byte_separator == ("yes" if separator else "no")


def test_same_model_same_file_and_nothing_private_in_it(tmp_path: Path) -> None:
    run = small_run(ByteTokenizer())
    run = Run(data=Data(train="/home/somebody/secret", tokenizer="bytes", seq_len=40), model=run.model, train=run.train)
    model = shaken_model(run)
    for name in ("a", "b"):
        save_artifact(tmp_path / name, model, run, ByteTokenizer())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert "somebody" not in json.dumps(open_container(tmp_path / "a").header)


def test_saving_what_was_loaded_gives_the_same_file(tmp_path: Path) -> None:
    run = small_run(ByteTokenizer())
    save_artifact(tmp_path / "a", shaken_model(run), run, ByteTokenizer(), 0.9)
    artifact = load_artifact(tmp_path / "a")
    save_artifact(tmp_path / "b", artifact.model, artifact.run, artifact.tokenizer, artifact.temperature)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_loading_leaves_the_random_numbers_alone(tmp_path: Path) -> None:
    run = small_run(ByteTokenizer())
    save_artifact(tmp_path / "a", shaken_model(run), run, ByteTokenizer())
    before = torch.get_rng_state()
    load_artifact(tmp_path / "a")
    assert torch.equal(before, torch.get_rng_state())


def test_a_diverged_model_is_not_written(tmp_path: Path) -> None:
    run = small_run(ByteTokenizer())
    model = shaken_model(run)
    next(model.parameters()).data[0, 0] = float("nan")
    with pytest.raises(UserError, match="token_embed are not finite"):
        save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    assert os.listdir(tmp_path) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = small_run(ByteTokenizer())
    model = shaken_model(run)
    save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    before = (tmp_path / "a").read_bytes()

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left"):
        save_artifact(tmp_path / "a", model, run, ByteTokenizer(), 0.5)
    assert (tmp_path / "a").read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_an_unwritable_place_is_named(tmp_path: Path) -> None:
    run = small_run(ByteTokenizer())
    (tmp_path / "nowhere").write_text("a file where a folder should be")
    with pytest.raises(UserError, match="nowhere"):
        save_artifact(tmp_path / "nowhere" / "a", shaken_model(run), run, ByteTokenizer())


def test_inspection_adds_up(tmp_path: Path, bpe: SentencePieceTokenizer) -> None:
    run = small_run(bpe)
    model = shaken_model(run)
    path = tmp_path / "a.jepa"
    size = save_artifact(path, model, run, bpe, 1.1)
    found = inspect(path)
    json.dumps(found)
    assert found["bytes"] == size
    assert found["parameters"] == sum(p.numel() for p in model.parameters())
    assert found["packed_bytes"] == estimate_bytes(model, len(bpe.serialize())) == sum(found["bytes_by_part"].values())
    assert sum(row["bytes_packed"] for row in found["tensors"]) == estimate_bytes(model)
    assert sum(row["values"] for row in found["parts"].values()) == found["parameters"]
    assert sum(block["bytes"] for block in found["blocks"]) == found["compressed_bytes"] < size
    assert found["temperature"] == 1.1
    assert found["tokenizer"]["vocab"] == bpe.vocab_size
    weights = model.quant_weights()
    for row in found["tensors"]:
        weight, quantizer = weights[row["name"]].master, weights[row["name"]].quantizer
        assert row["shape"] == list(weight.shape)
        streams = quantizer.encode(weight)
        widths = {"q": quantizer.bits} if isinstance(quantizer, IntQuantizer) else {}
        bits = sum(value.numel() * widths.get(name, 8 * value.element_size()) for name, value in streams.items())
        assert row["bytes_packed"] * 8 == pytest.approx(bits, abs=7)
        assert row["entropy"] <= row["bits_per_value"]
        if row["quantizer"] == "int4":
            codes = quantizer.encode(weight)["q"]
            assert row["zeros"] == pytest.approx((codes == 0).float().mean().item())
            assert row["at_largest"] == pytest.approx((codes.abs() == 7).float().mean().item())
            assert row["at_largest"] >= 1 / weight.shape[1]  # the largest of each row has the largest integer


@pytest.mark.parametrize("preset", ["submission-bpe", "submission-byte"])
def test_published_models_fit_sixteen_megabytes_packed_alone_or_nearly(preset: str) -> None:
    run = load_preset(preset)
    vocab = {"submission-bpe": 8192, "submission-byte": 256}[preset]
    with torch.device("meta"):
        model = LanguageModel(Model(**(vars(run.model) | {"vocab_size": vocab})), run.quant)
    # INT4 alone would be half a byte a value; FP8 and scales come on top, and entropy coding has to win that back.
    values = sum(p.numel() for p in model.parameters())
    assert 0.5 < estimate_bytes(model) / values < 0.56


@pytest.mark.slow
def test_a_fresh_process_gives_the_same_logits(tmp_path: Path, bpe: SentencePieceTokenizer) -> None:
    run = small_run(bpe)
    model = shaken_model(run)
    save_artifact(tmp_path / "a.jepa", model, run, bpe)
    code = (
        "import sys, numpy, torch; from pathlib import Path; from jepamba.artifact import load_artifact\n"
        "a = load_artifact(Path(sys.argv[1])); ids = torch.tensor([a.tokenizer.encode('The lazy dog.').tolist()])\n"
        "numpy.save(sys.argv[2], a.model.logits(a.model(ids)[0]).detach().numpy())"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path / "a.jepa", tmp_path / "logits.npy"], check=True)
    ids = torch.tensor([bpe.encode("The lazy dog.").tolist()])
    model.eval()
    assert np.array_equal(np.load(tmp_path / "logits.npy"), model.logits(model(ids)[0]).detach().numpy())
