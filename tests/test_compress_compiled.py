"""The compiled steps of compression: the model's probabilities, and the same bits whatever runs beside a lane."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress_cases import TEXT, artifact_at, coded, tokenizer_named
from jepamba.artifact import Artifact
from jepamba.compress import Compressor, compiled
from jepamba.compress.compiled import CompiledSteps
from jepamba.compress.file_format import CompressedFile
from jepamba.compress.lanes import COMPILED, TORCH, LaneBatch
from jepamba.config import Data, Model, Quant, Run
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.ops import cpp
from jepamba.text import ByteTokenizer
from ops.cpp_cases import needs_compiler
from processes import ended

LANES = 16
BOUND = 2e-5
"""Of the difference between log-probabilities of the compiled steps and of PyTorch's, in nats."""


def small_artifact(quant: Quant | None = None, reset: bool = True, **settings: Any) -> Artifact:
    shape: dict[str, Any] = {"embed_dim": 12, "d_model": 16, "n_layer": 5, "d_state": 4, "headdim": 8, "mlp_mult": 2.0}
    tokenizer = ByteTokenizer()
    run = Run(
        data=Data(tokenizer="bpe", reset=reset),
        model=Model(vocab_size=tokenizer.vocab_size + 3, **(shape | settings)),
        quant=quant or Quant(large=256),
    )
    torch.manual_seed(0)
    model = LanguageModel(run.model, run.quant)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return Artifact(model.eval(), tokenizer, run, 0.9, {})


def probabilities(steps: CompiledSteps, ids_TW: np.ndarray) -> torch.Tensor:
    """What the steps leave for the coder after each token: (T, V, W), divided by its sum."""
    start, buffer = steps.kernels.probabilities_at(steps.model), steps.buffer()
    vocabulary = steps.artifact.tokenizer.vocab_size
    found = []
    for ids_W in ids_TW:
        steps.step(buffer, np.ascontiguousarray(ids_W, np.int32))
        e_VW = buffer[start : start + vocabulary * LANES].view(vocabulary, LANES).double()
        found.append(e_VW / e_VW.sum(0))
    return torch.stack(found)


def random_ids(artifact: Artifact, steps: int) -> np.ndarray:
    ids_TW = np.random.default_rng(1).integers(0, artifact.tokenizer.vocab_size, (steps, LANES))
    ids_TW[steps // 2, 3] = artifact.tokenizer.bos_id
    return ids_TW


@needs_compiler
@pytest.mark.parametrize(
    ("settings", "quant"),
    [
        ({}, None),
        ({"tie": 0, "mlp": "swiglu", "expand": 2, "ngroups": 2, "softcap": "tanh", "cap": 2.0}, Quant(bits=6)),
        ({"tie": 2, "embed_dim": 16, "unet": False, "softcap": "off", "mlp_every": 2}, Quant(bits=32)),
        ({"tie": 3, "self_skip": True, "d_conv": 1, "n_layer": 4}, Quant(large=256, vectors="int8")),
        ({"d_model": 40, "headdim": 20, "d_conv": 3, "d_state": 5, "softcap": "poly", "cap": 1.0}, None),
    ],
)
@pytest.mark.parametrize("reset", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_probabilities_are_those_of_pytorch(settings: dict[str, Any], quant: Quant | None, reset: bool) -> None:
    artifact = small_artifact(quant, reset, **settings)
    ids_TW = random_ids(artifact, 30)
    found_TVW, batch = probabilities(CompiledSteps(artifact), ids_TW), LaneBatch(artifact, LANES)
    with torch.inference_mode():
        for p_VW, ids_W in zip(found_TVW, ids_TW, strict=True):
            logits_WV = batch.step(ids_W)[:, : artifact.tokenizer.vocab_size]
            assert (p_VW.log() - logits_WV.double().log_softmax(1).T).abs().max() < BOUND


@needs_compiler
def test_the_bits_of_a_lane_do_not_depend_on_the_others() -> None:
    steps = CompiledSteps(small_artifact())
    ids_TW = random_ids(steps.artifact, 40)
    alone_TW = np.full_like(ids_TW, steps.artifact.tokenizer.bos_id)
    alone_TW[:, 11] = ids_TW[:, 3]
    assert torch.equal(probabilities(steps, ids_TW)[:, :, 3], probabilities(steps, alone_TW)[:, :, 11])


@needs_compiler
@pytest.mark.skipif("fma" not in cpp._processor() or "avx2" not in cpp._processor(), reason="needs AVX2")
@pytest.mark.parametrize("target", ["x86-64-v3", "x86-64"])
def test_the_bits_do_not_depend_on_the_instruction_set(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Vectors of 8 and of 4 values."""
    artifact = small_artifact()
    ids_TW = random_ids(artifact, 40)
    native_TVW, command = probabilities(CompiledSteps(artifact), ids_TW), cpp._command()
    other = [flag for flag in command if not flag.startswith(("-march", "-mprefer", "-O"))]
    monkeypatch.setattr(cpp, "_command", lambda: [*other, "-O2", f"-march={target}"])
    cpp.library.cache_clear()
    try:
        assert torch.equal(probabilities(CompiledSteps(artifact), ids_TW), native_TVW)
    finally:
        cpp.library.cache_clear()


@needs_compiler
def test_a_file_is_read_after_the_cache_was_emptied(tmp_path: Path) -> None:
    path = artifact_at(tmp_path / "a.jepa", tokenizer_named("trained"), TEXT)
    content = coded(Compressor.open(path), TEXT[:2000], 33)
    assert CompressedFile.from_bytes(content).variant == COMPILED
    (tmp_path / "in").write_bytes(content)
    words = ["decompress", str(tmp_path / "in"), "--model", str(path), "-o", str(tmp_path / "out")]
    code, printed = ended(words, tmp_path / "process", {"XDG_CACHE_HOME": str(tmp_path / "cache")})
    assert code == 0, printed
    assert (tmp_path / "out").read_bytes() == TEXT[:2000]
    assert list((tmp_path / "cache" / "jepamba" / "kernels").glob("compress-*.so"))


def test_without_a_compiler_pytorch_writes_and_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Compressor.open(artifact_at(tmp_path / "a.jepa", tokenizer_named("bytes"), TEXT))
    content = coded(model, TEXT[:300])
    monkeypatch.setattr(compiled, "library", lambda *_: None)
    written = coded(model, TEXT[:300])
    assert CompressedFile.from_bytes(written).variant == TORCH
    assert model.decompress(written) == TEXT[:300]
    if CompressedFile.from_bytes(content).variant == COMPILED:
        with pytest.raises(UserError, match=r"compiled steps, which need a C\+\+ compiler"):
            model.decompress(content)


def test_a_model_with_attention_takes_pytorch_s_steps() -> None:
    artifact = small_artifact(attention_every=2, attention_window=7)
    model = Compressor(artifact, bytes(32))
    content = coded(model, TEXT[:200])
    assert CompressedFile.from_bytes(content).variant == TORCH
    assert model.decompress(content) == TEXT[:200]


@needs_compiler
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 3e38])
def test_values_that_are_no_numbers_still_give_weights(value: float) -> None:
    artifact = small_artifact()
    artifact.model.head.vocab_bias.master.data[5:90] = value
    model = Compressor(artifact, bytes(32))
    content = coded(model, TEXT[:200])
    assert CompressedFile.from_bytes(content).variant == COMPILED
    assert model.decompress(content) == TEXT[:200]


@needs_compiler
def test_a_carry_reaches_the_words_that_are_written() -> None:
    kernels = compiled._kernels()
    assert kernels is not None
    words = np.array([7, 2**32 - 1, 2**32 - 1, 0], np.uint32)
    coder = compiled._Coder(2**64 - 5, 2**32, words.ctypes.data, 4, 3, 1)
    kernels.finish_writing(ctypes.byref(coder))
    assert words.tolist() == [8, 0, 0, 0]
    assert coder.position == 4
