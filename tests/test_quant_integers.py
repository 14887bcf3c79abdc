"""The bits of single tensors, and models without rounding."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jepamba.config import ConfigError, Model, Quant
from jepamba.model import LanguageModel

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
