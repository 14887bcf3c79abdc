"""Tests of the kernels of fake quantization: the bits of `decode(encode(w))`. test_gpu.py tests cached bfloat16."""

from __future__ import annotations

import pytest
import torch

from jepamba.config import Model, Quant
from jepamba.model import LanguageModel
from jepamba.ops.fake_quantize import triton as operator
from jepamba.quant import IntQuantizer, fake_quantize_into, quantizer_named, quantizers
from ops.compare import DEVICE
from ops.fake_quantize.cases import QUANTIZERS, differences, different, fused, half_steps, hard_weights, plain

# NumPy, with which Triton's interpreter computes, warns of infinities and NaN.
pytestmark = pytest.mark.filterwarnings("ignore:.* encountered in:RuntimeWarning")


@pytest.fixture(autouse=True)
def _kernels_on_the_cpu_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizers, "use_triton", lambda _: True)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_kernel_gives_the_bits_of_the_quantizer(name: str) -> None:
    assert differences(hard_weights().to(DEVICE), name) == 0


@pytest.mark.parametrize("name", ["int4", "bf16"])
@pytest.mark.parametrize("shape", [(), (1,), (700,), (1, 1), (1500, 3), (3, 5, 7), (2, 65)], ids=str)
def test_every_shape(name: str, shape: tuple[int, ...]) -> None:
    assert differences(torch.randn(shape, device=DEVICE), name) == 0


def test_rows_longer_than_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operator, "MAX_BLOCK", 32)
    assert differences(hard_weights(230).to(DEVICE), "int4") == 0


@pytest.mark.parametrize("bits", range(2, 9))
def test_ties_are_rounded_to_even(bits: int) -> None:
    w, rounded = half_steps(bits)
    assert torch.equal(fused(w.to(DEVICE), IntQuantizer(bits), torch.float32).cpu(), rounded)


@pytest.mark.parametrize("name", ["fp8", "fp8-row", "fp32"])
def test_other_quantizers_take_the_plain_path(name: str) -> None:
    w = torch.randn(20, 48, device=DEVICE)
    quantizer, out = quantizer_named(name), torch.empty(20, 48, device=DEVICE)
    fake_quantize_into(out, w, quantizer)
    assert different(out, quantizer.decode(quantizer.encode(w), (20, 48))) == 0


def test_transposed_weights() -> None:
    w = torch.randn(20, 48, device=DEVICE).t()
    out = torch.empty_like(w)
    fake_quantize_into(out, w, IntQuantizer(4))
    assert different(out.contiguous(), plain(w, IntQuantizer(4), torch.float32).contiguous()) == 0


@pytest.mark.parametrize("quant", [Quant(large=64), Quant(large=64, embedding="int6", vectors="int8")], ids=str)
def test_the_cached_weights_are_the_effective_weights(quant: Quant) -> None:
    config = Model(vocab_size=40, embed_dim=12, d_model=16, n_layer=3, headdim=8, d_state=4, chunk_size=8)
    model = LanguageModel(config, quant).to(DEVICE).train()
    with torch.no_grad():
        for master in model.parameters():
            master += 0.1 * torch.randn_like(master)
    for on in (False, True):
        model.set_fake_quantization(on)
        cache = model.cached_weights(torch.float32)
        cache.compute()
        for weight, leaf in zip(cache.weights, cache.leaves, strict=True):
            assert different(leaf.detach(), weight.effective_weight().detach()) == 0
