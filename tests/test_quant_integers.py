"""Integer quantizers with clipped scales and with groups: what is chosen, against a search by hand."""

from __future__ import annotations

from dataclasses import replace
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
from jepamba.quant.integers import RATIOS

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


def through(w: Tensor, quantizer: IntQuantizer, importance_C: Tensor | None = None) -> Tensor:
    return quantizer.decode(quantizer.encode(w, importance_C), tuple(w.shape))


def error(
    w: Tensor, quantizer: IntQuantizer, importance_C: Tensor | None = None, weights_C: Tensor | None = None
) -> Tensor:
    """Squared error of each row, each column weighted."""
    square = (through(w, quantizer, importance_C) - w).double().square()
    return (square if weights_C is None else square * weights_C).sum(1)


@pytest.mark.parametrize("width", range(2, 9))
def test_clipping_never_hurts_and_finds_the_best_of_its_scales(width: int) -> None:
    w = torch.randn(50, 200) * torch.logspace(-5, 5, 50).unsqueeze(1)
    clipped, plain = IntQuantizer(width, "clip"), IntQuantizer(width)
    assert (error(w, clipped) <= error(w, plain)).all()
    scale = clipped.encode(w)["scale"].float()
    share = scale / plain.encode(w)["scale"].float()
    assert share.max() <= 1
    assert share.unique().numel() <= 2 * RATIOS * 8  # a handful of shares, each blurred by the rounding to BF16
    # By hand, on a net of shares six times finer and with no bound: hardly better.
    absmax = plain.encode(w)["scale"].float()
    best = torch.stack([_error_at(w, absmax * share, width) for share in torch.linspace(0.2, 1.0, 81)]).amin(0)
    relative = error(w, clipped) / best
    assert relative.mean() < 1.04
    assert relative.max() < 1.25
    cubed = w**3  # heavy tails
    assert (error(cubed, clipped) <= error(cubed, plain)).all()


def _error_at(w: Tensor, scale: Tensor, width: int) -> Tensor:
    limit = 2 ** (width - 1) - 1
    q = (w / scale.unsqueeze(1)).round().clamp(-limit, limit)
    return (q * scale.unsqueeze(1) - w).double().square().sum(1)


def test_clipping_pays_where_bits_are_few() -> None:
    """Measured on normal rows of 640: a third of the squared error at 4 bits, three quarters at 2."""
    w = torch.randn(400, 640)
    gain = {
        width: 1 - (error(w, IntQuantizer(width, "clip")).sum() / error(w, IntQuantizer(width)).sum()).item()
        for width in (2, 4, 8)
    }
    assert gain[2] > 0.7
    assert 0.28 < gain[4] < 0.4
    assert gain[8] < 0.02


@given(st.integers(2, 8), st.sampled_from(["absmax", "clip", "hessian"]), st.integers(0, 20), st.integers(0, 10**6))
@settings(max_examples=examples(60), deadline=None)
def test_what_is_encoded_comes_back_the_same_again(width: int, scale: Any, group: int, seed: int) -> None:
    """Quantized values stay, and so do their streams, whatever the importance of the second pass."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(4, 17, generator=g).pow(3)
    quantizer = IntQuantizer(width, scale, group)
    first = quantizer.encode(w, torch.rand(17, generator=g) + 0.1)
    once = quantizer.decode(first, (4, 17))
    for importance in (None, torch.rand(17, generator=g) + 0.1):
        second = quantizer.encode(once, importance)
        assert all(torch.equal(first[name], second[name]) for name in first)
        assert torch.equal(fake_quantize(once, quantizer, importance), once)


def test_groups_are_rows_of_their_own() -> None:
    """A matrix in groups of 8 is the matrix cut into rows of 8; a rest of columns is a shorter group."""
    w = torch.randn(6, 24)
    for scale in ("absmax", "clip"):
        grouped = through(w, IntQuantizer(4, scale, 8))  # type: ignore[arg-type]
        assert torch.equal(grouped, through(w.reshape(18, 8), IntQuantizer(4, scale)).reshape(6, 24))  # type: ignore[arg-type]
    ragged = through(w[:, :21], IntQuantizer(4, "clip", 8))
    assert torch.equal(ragged[:, :16], through(w[:, :16], IntQuantizer(4, "clip", 8)))
    assert torch.equal(ragged[:, 16:], through(w[:, 16:21], IntQuantizer(4, "clip")))
    assert IntQuantizer(4, group=8).streams((6, 21))["scale"] == ((6, 3), torch.bfloat16)
    # A group as wide as the row, or wider, is the row.
    for group in (21, 100):
        assert torch.equal(through(w[:, :21], IntQuantizer(4, "absmax", group)), through(w[:, :21], IntQuantizer(4)))
    assert error(w, IntQuantizer(4, group=8)).sum() < error(w, IntQuantizer(4)).sum()


@pytest.mark.parametrize("group", [0, 16])
def test_importance_moves_the_error_to_where_it_matters_less(group: int) -> None:
    w = torch.randn(64, 48)
    w[:, ::3] *= 4.0
    importance = torch.ones(48)
    importance[::3] = 1e-3  # the large columns hardly matter: clip them
    quantizer = IntQuantizer(4, "hessian", group)
    weighted, plain = (
        error(w, quantizer, importance, importance),
        error(w, replace(quantizer, scale="clip"), None, importance),
    )
    assert (weighted <= plain * (1 + 1e-6)).all()
    assert weighted.sum() < 0.7 * plain.sum()
    # Without importance, and with equal importance, it is the plain search; `clip` never looks at it.
    assert torch.equal(through(w, quantizer), through(w, IntQuantizer(4, "clip", group)))
    assert torch.equal(through(w, quantizer, torch.full((48,), 0.25)), through(w, quantizer))
    assert torch.equal(
        through(w, IntQuantizer(4, "clip", group), importance), through(w, IntQuantizer(4, "clip", group))
    )
    # Columns that never see an input may go; nothing breaks where that is all of them.
    assert torch.isfinite(through(w, quantizer, torch.zeros(48))).all()


def test_a_search_in_chunks_gives_the_same_scales(monkeypatch: pytest.MonkeyPatch) -> None:
    w, importance = torch.randn(37, 30), torch.rand(30)
    for quantizer in (IntQuantizer(4, "clip"), IntQuantizer(4, "hessian"), IntQuantizer(3, "hessian", 7)):
        whole = through(w, quantizer, importance)
        with monkeypatch.context() as patch:
            patch.setattr("jepamba.quant.integers._CHUNK_VALUES", {"cpu": 64})
            assert torch.equal(through(w, quantizer, importance), whole)


def test_gradients_pass_clipped_values_too() -> None:
    w = torch.randn(3, 40)
    w[:, 0] = 6.0  # far out: clipped at 2 bits
    leaf = w.clone().requires_grad_()
    seen = fake_quantize(leaf, IntQuantizer(2, "clip"))
    assert (seen[:, 0] < 5.0).all()
    (grad,) = torch.autograd.grad(seen.sum(), leaf)
    assert torch.equal(grad, torch.ones(3, 40))


def test_a_model_records_its_inputs_only_while_calibrating_and_weighs_by_them() -> None:
    model = LanguageModel(Model(**SMALL), Quant(large=512, scale="hessian")).train()
    model.set_fake_quantization(True)
    mlp = model.blocks[0].mlp
    assert mlp is not None
    tokens = torch.arange(40).reshape(2, 20)
    hidden: list[Tensor] = []
    mlp.up.register_forward_hook(lambda module, inputs, output: hidden.append(inputs[0]))
    before = model.export_weights()["blocks.0.mlp.up.weight"]
    model(tokens)
    assert torch.equal(mlp.up.weight.input_power, torch.ones(32))
    with model.calibrate_inputs():
        model(tokens)
    torch.testing.assert_close(mlp.up.weight.input_power, hidden[-1].square().mean((0, 1)))
    noted = mlp.up.weight.input_power.clone()
    model(tokens + 3)
    assert torch.equal(mlp.up.weight.input_power, noted)
    # A pass sees, and export stores, the values quantized with these importances.
    w, quantizer = mlp.up.weight.master.detach(), mlp.up.weight.quantizer
    expected = quantizer.decode(quantizer.encode(w, noted), tuple(w.shape))
    assert torch.equal(mlp.up.weight.effective_weight().detach(), expected)
    assert torch.equal(quantizer.decode(model.export_weights()["blocks.0.mlp.up.weight"], tuple(w.shape)), expected)
    assert not torch.equal(model.export_weights()["blocks.0.mlp.up.weight"]["scale"], before["scale"])
    assert "blocks.0.mlp.up.weight.input_power" in model.state_dict()
    assert not any("input_power" in name for name in LanguageModel(Model(**SMALL), Quant(scale="clip")).state_dict())


def test_bits_of_single_tensors() -> None:
    quant = Quant(large=512, scale="clip", bit_allocation=("blocks.0.mixer.in_proj.weight=6", "embed_proj.weight=2"))
    model = LanguageModel(Model(**SMALL), quant)
    names = {name: weight.quantizer.name for name, weight in model.quant_weights().items()}
    assert names["blocks.0.mixer.in_proj.weight"] == "int6-clip"
    assert names["embed_proj.weight"] == "int2-clip"
    assert names["blocks.1.mixer.in_proj.weight"] == "int4-clip"
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
