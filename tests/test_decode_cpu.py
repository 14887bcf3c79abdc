"""The compiled step on a CPU: stored weights stay exact, and its outputs are those of the plain step."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import model_oracle
from jepamba.config import Model, Quant
from jepamba.decode.cpu import CpuStep, compiling_step, supports_cpu_step
from jepamba.decode.packed import FLOAT, FP8, INT4, INT8, PackedMatrix, pack
from jepamba.generate import PromptReader, generate
from jepamba.model import LanguageModel
from jepamba.quant import FloatQuantizer, Fp8Quantizer, IntQuantizer, Quantizer, QuantWeight
from jepamba.text import ByteTokenizer

pytest.importorskip("numba")

BOUND = 2e-5
"""Of the difference between logits of the compiled step and of the plain one, in nats; their spread is about 1."""


def small_model(quant: Quant | None = None, **settings: Any) -> LanguageModel:
    shape: dict[str, Any] = {"embed_dim": 12, "d_model": 16, "n_layer": 5, "d_state": 4, "headdim": 8, "mlp_mult": 2.0}
    model = LanguageModel(Model(vocab_size=256, **(shape | settings)), quant or Quant(large=256))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.eval()


def fed(step: CpuStep, token: int) -> torch.Tensor:
    """The logits of a single stream after `token`."""
    step.tokens_B.fill_(token)
    step()
    return step.logits_BV[0]


def product(matrix: PackedMatrix, x_K: torch.Tensor) -> torch.Tensor:
    from jepamba.decode.cpu_kernels import product as kernel

    blocks, columns, _ = matrix.words_BKS.shape
    entry = np.array([matrix.kind, blocks, columns, 0, 0])
    y_R = np.full(matrix.scale_R.size, np.nan, np.float32)
    kernel(entry, matrix.words_BKS.reshape(-1), matrix.scale_R, matrix.offset_R, matrix.sum_R, x_K.numpy(), y_R)
    return torch.from_numpy(y_R)


QUANTIZERS = [
    (IntQuantizer(2), INT4), (IntQuantizer(4), INT4), (IntQuantizer(5), INT8),
    (IntQuantizer(8), INT8), (Fp8Quantizer(True), FP8), (Fp8Quantizer(False), FLOAT),
    (FloatQuantizer(torch.bfloat16), FLOAT), (FloatQuantizer(torch.float32), FLOAT),
]  # fmt: skip


@pytest.mark.parametrize(("quantizer", "kind"), QUANTIZERS, ids=lambda value: getattr(value, "name", ""))
@pytest.mark.parametrize("shape", [(70, 300), (128, 37)])
def test_a_packed_matrix_is_the_stored_one(quantizer: Quantizer, kind: int, shape: tuple[int, int]) -> None:
    weight = QuantWeight(torch.randn(shape) * torch.logspace(-3, 2, shape[0])[:, None], quantizer).eval()
    weight.master.data[3] = 0
    weight.load(weight.effective_weight().detach())
    matrix, exact = pack(weight), weight.master.detach().double()
    assert matrix.kind == kind
    x_K = torch.randn(shape[1]).relu() + torch.arange(shape[1]) % 3
    y_R = product(matrix, x_K).double()
    error = (y_R[: shape[0]] - exact @ x_K.double()).abs()
    assert (error <= 4e-7 * exact.abs().amax(1) * x_K.double().sum()).all()
    assert (y_R[shape[0] :] == 0).all()
    if kind != INT4:  # which subtracts the mean of its input
        columns = torch.stack([product(matrix, row)[: shape[0]] for row in torch.eye(shape[1])], dim=1)
        assert torch.equal(columns.double(), exact)


def test_values_outside_their_format_are_packed_as_floats() -> None:
    weight = QuantWeight(torch.randn(9, 40), IntQuantizer(4)).eval()
    weight.load(torch.randn(9, 40))
    assert pack(weight).kind == FLOAT


CONFIGS: list[tuple[dict[str, Any], Quant | None]] = [
    ({}, None),
    ({"tie": 0, "mlp": "swiglu", "expand": 2, "ngroups": 2, "softcap": "tanh"}, Quant(large=256, bits=6)),
    ({"tie": 2, "embed_dim": 16, "unet": False, "softcap": "off", "mlp_every": 1}, Quant(bits=32)),
    ({"tie": 3, "self_skip": True, "d_conv": 1, "n_layer": 4}, Quant(large=256, vectors="int8")),
    ({"d_model": 48, "headdim": 16, "d_conv": 3}, Quant(large=256, embedding="int8", fp8_scale="none")),
]


@pytest.mark.parametrize(
    ("settings", "quant"),
    [CONFIGS[1], *(pytest.param(*case, marks=pytest.mark.slow) for case in (CONFIGS[0], *CONFIGS[2:]))],
)
def test_the_compiled_step_is_the_plain_step(settings: dict[str, Any], quant: Quant | None) -> None:
    model = small_model(quant, **settings)
    tokens = torch.randint(256, (100,)).tolist()
    reader = PromptReader(model)
    reader.read(tokens[:20])
    assert supports_cpu_step(model)
    assert reader.state is not None
    step = CpuStep(model, reader.state)
    with torch.no_grad():
        parallel = model.logits(model(torch.tensor([tokens]))[0][0])
    for position, token in enumerate(tokens[20:], 20):
        logits = fed(step, token)
        assert (logits - reader.read([token])).abs().max() < BOUND
        assert (logits - parallel[position]).abs().max() < 1e-4


def test_the_compiled_step_is_as_exact_as_the_plain_one() -> None:
    model = small_model(Quant(large=256), d_model=128, headdim=32, mlp_mult=8.0)
    tokens = torch.randint(256, (24,))
    weights = model_oracle.weights_of(small_copy(model))
    exact = model_oracle.logits(
        model_oracle.latents(tokens, weights, model.config, [False] * 24), weights, model.config
    )
    step, reader = CpuStep(model, model.initial_state(1)), PromptReader(model)
    compiled = torch.stack([fed(step, int(token)).clone() for token in tokens])
    plain = torch.stack([reader.read([int(token)]) for token in tokens])
    errors = [(logits - exact).square().mean().sqrt() for logits in (compiled, plain)]
    assert errors[0] < 8 * errors[1] < 1e-4


def small_copy(model: LanguageModel) -> LanguageModel:
    """`model` with its quantized weights as masters."""
    with torch.no_grad():
        for weight in model.quant_weights().values():
            weight.load(weight.effective_weight())
    return model


def test_bits_by_matrix() -> None:
    model = small_model(Quant(large=256))
    model.set_bit_allocation({"blocks.0.mlp.up.weight": 3, "blocks.1.mixer.in_proj.weight": 7})
    reader = PromptReader(model)
    step = CpuStep(model, model.initial_state(1))
    kinds = [pack(block.mixer.in_proj.weight).kind for block in list(model.blocks)[:2]]  # type: ignore[union-attr]
    assert kinds == [INT4, INT8]
    for token in range(40):
        assert (fed(step, token) - reader.read([token])).abs().max() < BOUND


def test_streams_are_stepped_apart_until_they_end() -> None:
    model = small_model()
    tokens = torch.randint(256, (3, 30))
    readers = [PromptReader(model) for _ in tokens]
    for reader, row in zip(readers, tokens, strict=True):
        reader.read(row[:20].tolist())
    with torch.no_grad():
        step = CpuStep(model, model(tokens[:, :20])[1])
    for position in range(20, 30):
        step.tokens_B.copy_(tokens[:, position])
        step()
        for logits, reader, row in zip(step.logits_BV, readers, tokens, strict=True):
            assert (logits - reader.read([int(row[position])])).abs().max() < BOUND
    before = step.logits_BV.clone()
    step.ended.add(1)
    step()
    assert (step.logits_BV == before).all(-1).tolist() == [False, True, False]


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.7, "top_k": 9, "top_p": 0.9},
        *(pytest.param(case, marks=pytest.mark.slow) for case in [{}, {"top_k": 5}, {"temperature": 0.0}]),
    ],
)
def test_the_text_is_that_of_the_plain_step(sampling: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    compiled = "".join(generate(model, ByteTokenizer(False), "Hello", 250, seed=3, **sampling))
    monkeypatch.setattr("jepamba.generate.supports_cpu_step", lambda _: False)
    assert compiled == "".join(generate(model, ByteTokenizer(False), "Hello", 250, seed=3, **sampling))
    assert len(compiled) > 50


def test_a_model_with_attention_takes_the_plain_step() -> None:
    model = small_model(attention_every=2, attention_window=7)
    assert not supports_cpu_step(model)
    assert len("".join(generate(model, ByteTokenizer(False), "Hello", 40))) > 10


def test_without_numba_the_plain_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jepamba.decode.cpu_kernels", None)  # its import fails
    assert not supports_cpu_step(small_model())


@pytest.mark.slow
def test_a_process_compiles_the_step_for_every_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    deadline = time.monotonic() + 120
    with compiling_step():
        while not list(tmp_path.rglob("*.nbc")):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        time.sleep(0.5)  # the index of the cache is written after the code
    code = """
import test_decode_cpu as cases
from jepamba.decode.cpu import CpuStep
from jepamba.decode.cpu_kernels import step
for model in (cases.small_model(), cases.small_model(n_layer=2, tie=0, softcap="tanh", unet=False, mlp="relu2")):
    CpuStep(model, model.initial_state(1))()
assert len(step.signatures) == 1, step.signatures
assert sum(step.stats.cache_hits.values()) == 1 and not step.stats.cache_misses, step.stats
"""
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent, check=True)
