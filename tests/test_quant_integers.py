"""Integer quantizers: groups, fixed points, and the bits of single tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from examples import examples
from jepamba.config import ConfigError, Model, Quant
from jepamba.model import LanguageModel
from jepamba.quant import IntQuantizer, fake_quantize

SMALL: dict[str, Any] = {
    "vocab_size": 70,
    "embed_dim": 24,
    "d_model": 32,
    "n_layer": 2,
    "d_state": 8,
    "headdim": 8,
    "mlp_mult": 2.0,
    "chunk_size": 8,
}


def through(w: Tensor, quantizer: IntQuantizer) -> Tensor:
    return quantizer.decode(quantizer.encode(w), tuple(w.shape))


def error(w: Tensor, quantizer: IntQuantizer) -> Tensor:
    """Squared error of each row."""
    return (through(w, quantizer) - w).double().square().sum(1)


@given(st.integers(2, 8), st.integers(0, 20), st.integers(0, 10**6))
@settings(max_examples=examples(60), deadline=None)
def test_what_is_encoded_comes_back_the_same_again(width: int, group: int, seed: int) -> None:
    """Quantized values stay, and so do their streams."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 17, generator=g).pow(3)
    quantizer = IntQuantizer(width, group)
    first = quantizer.encode(w)
    once = quantizer.decode(first, (4, 17))
    second = quantizer.encode(once)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert torch.equal(fake_quantize(once, quantizer), once)


def test_groups_are_rows_of_their_own() -> None:
    """A matrix in groups of 8 is the matrix cut into rows of 8; a rest of columns is a shorter group."""
    w = torch.randn(6, 24)
    grouped = through(w, IntQuantizer(4, 8))
    assert torch.equal(grouped, through(w.reshape(18, 8), IntQuantizer(4)).reshape(6, 24))
    ragged = through(w[:, :21], IntQuantizer(4, 8))
    assert torch.equal(ragged[:, :16], through(w[:, :16], IntQuantizer(4, 8)))
    assert torch.equal(ragged[:, 16:], through(w[:, 16:21], IntQuantizer(4)))
    assert IntQuantizer(4, group=8).streams((6, 21))["scale"] == ((6, 3), torch.bfloat16)
    # A group as wide as the row, or wider, is the row.
    for group in (21, 100):
        assert torch.equal(through(w[:, :21], IntQuantizer(4, group)), through(w[:, :21], IntQuantizer(4)))
    assert error(w, IntQuantizer(4, group=8)).sum() < error(w, IntQuantizer(4)).sum()


def test_bits_of_single_tensors() -> None:
    quant = Quant(large=512, bit_allocation=("blocks.0.mixer.in_proj.weight=6", "embed_proj.weight=2"))
    model = LanguageModel(Model(**SMALL), quant)
    names = {name: weight.quantizer.name for name, weight in model.quant_weights().items()}
    assert names["blocks.0.mixer.in_proj.weight"] == "int6"
    assert names["embed_proj.weight"] == "int2"
    assert names["blocks.1.mixer.in_proj.weight"] == "int4"
    assert model.quant == quant
    model.set_bit_allocation({"embed_proj.weight": 3, "blocks.1.mixer.in_proj.weight": 8})
    assert model.quant.bits_by_name == {
        "blocks.0.mixer.in_proj.weight": 6,
        "embed_proj.weight": 3,
        "blocks.1.mixer.in_proj.weight": 8,
    }
    again = LanguageModel(Model(**SMALL), model.quant).quant_weights()
    assert all(again[name].quantizer == weight.quantizer for name, weight in model.quant_weights().items())
    for path in ("token_embed", "blocks.0.mix", "blocks.7.mixer.in_proj.weight", "nothing"):
        with pytest.raises(ConfigError, match=f"no weight '{path}' with an integer quantizer"):
            LanguageModel(Model(**SMALL), Quant(large=512, bit_allocation=(f"{path}=4",)))
    with pytest.raises(ConfigError, match="with 2 to 8 bits"):
        model.set_bit_allocation({"embed_proj.weight": 9})


def test_without_rounding_every_tensor_is_kept_to_the_bit() -> None:
    model = LanguageModel(Model(**SMALL), Quant(bits=32))
    assert {weight.quantizer.name for weight in model.quant_weights().values()} == {"fp32"}
    weights = model.quant_weights()
    for name, streams in model.export_weights().items():
        assert torch.equal(streams["value"], weights[name].master)
