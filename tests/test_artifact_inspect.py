"""Inspection: bytes that add up, errors against the unrounded weights, and costs against files really written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.artifact import inspect, save_artifact
from jepamba.config import Data, Model, Quant, Run, Train
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.quant import IntQuantizer
from jepamba.quant.floats import FloatQuantizer
from jepamba.text import ByteTokenizer

QUANTS = [
    Quant(large=512),
    Quant(large=512, bits=5, embedding="int6", vectors="int8"),
    Quant(large=512, bits=3, fp8_scale="none", vectors="fp8-row", bit_allocation=("embed_proj.weight=7",)),
    Quant(bits=32),
]


def run_of(quant: Quant, **changes: Any) -> Run:
    sizes: dict[str, Any] = {
        "embed_dim": 48,
        "d_model": 64,
        "n_layer": 3,
        "d_state": 16,
        "headdim": 16,
        "mlp_mult": 2.0,
    }
    return Run(
        data=Data(tokenizer="bytes", seq_len=40),
        model=Model(vocab_size=256, **(sizes | changes)),
        quant=quant,
        train=Train(steps=1, tokens_per_step=40, tokens_per_micro=40),
    )


def shaken_model(run: Run) -> LanguageModel:
    """A model none of whose parameters is at its initial value, as after training."""
    torch.manual_seed(5)
    model = LanguageModel(run.model, run.quant)
    for name, value in model.named_parameters():
        value.data += (
            0.1 * torch.randn_like(value) * (1.0 if name.endswith(".weight.master") or "embed" in name else 0.3)
        )
    return model


def masters_of(model: LanguageModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize(
    "quant", [*QUANTS[1:3], *(pytest.param(q, marks=pytest.mark.slow) for q in QUANTS[::3])], ids=str
)
def test_rows_add_up_and_errors_are_those_of_the_rounding(tmp_path: Path, quant: Quant) -> None:
    run = run_of(quant)
    model = shaken_model(run)
    save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    masters = masters_of(model)
    found, blind = inspect(tmp_path / "a", masters), inspect(tmp_path / "a")
    json.dumps(found)
    assert found["masters_are_its_own"] is True
    assert blind["masters_are_its_own"] is None
    own = sum(block["bytes"] for block in found["blocks"] if block["kind"] != "u8")
    assert sum(row["bytes_coded"] for row in found["tensors"]) == pytest.approx(own)
    weights = model.quant_weights()
    for row, unseen in zip(found["tensors"], blind["tensors"], strict=True):
        master, quantizer = masters[f"{row['name']}.master"], weights[row["name"]].quantizer
        streams = weights[row["name"]].export()
        lost = (quantizer.decode(streams, tuple(master.shape)) - master).norm() / master.norm()
        assert row["error"] == pytest.approx(lost.item(), rel=1e-4, abs=1e-12), row["name"]
        assert unseen["error"] is None
        assert unseen["at_largest"] == row["at_largest"]
        if isinstance(quantizer, FloatQuantizer):
            assert row["at_largest"] is None
        elif isinstance(quantizer, IntQuantizer):
            assert row["at_largest"] == pytest.approx((streams["q"].abs() == quantizer.q_max).float().mean().item())
            assert row["at_largest"] > 0
        assert row["bits_coded"] == pytest.approx(8 * row["bytes_coded"] / row["values"])
        assert "same" not in row
        # What is expected is what happened, where there are enough values to average.
        if row["quantizer"] != "fp32" and row["values"] >= 2000:
            assert row["expected_error"] == pytest.approx(row["error"], rel=0.12), row["name"]
        assert (row["expected_error"] > 0) == (row["quantizer"] != "fp32") or row["expected_error"] < 1e-7


def test_weights_at_the_largest_integer_are_counted(tmp_path: Path) -> None:
    """One weight in each row of 48 far out takes the largest integer, and no other does."""
    run = run_of(Quant(large=512, bits=2))
    model = shaken_model(run)
    weight = model.quant_weights()["embed_proj.weight"].master
    weight.data = weight.data.sign() + 0.01 * weight.data
    weight.data[:, 0] = 2.5
    save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    rows = {row["name"]: row for row in inspect(tmp_path / "a")["tensors"]}
    assert rows["embed_proj.weight"]["at_largest"] == pytest.approx(1 / 48)


def test_other_masters_are_noticed_and_those_of_another_model_refused(tmp_path: Path) -> None:
    run = run_of(QUANTS[0])
    model = shaken_model(run)
    save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    masters = masters_of(model)
    masters["embed_proj.weight.master"] += 0.1 * torch.randn(64, 48)
    found = inspect(tmp_path / "a", masters)
    assert found["masters_are_its_own"] is False
    (row,) = (row for row in found["tensors"] if row["name"] == "embed_proj.weight")
    (blind,) = (row for row in inspect(tmp_path / "a")["tensors"] if row["name"] == "embed_proj.weight")
    assert row["error"] > 2 * blind["expected_error"]
    for bad in (
        {name: value for name, value in masters.items() if name != "blocks.1.mix.master"},
        {**masters, "blocks.1.mix.master": torch.zeros(2, 63)},
    ):
        with pytest.raises(UserError, match=r"blocks\.1\.mix"):
            inspect(tmp_path / "a", bad)


@pytest.mark.parametrize("bits", [pytest.param(3, marks=pytest.mark.slow), 5])
def test_one_more_bit_costs_what_it_costs(tmp_path: Path, bits: Any) -> None:
    run = run_of(Quant(large=512, bits=bits))
    model = shaken_model(run)
    size = save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    finer = replace(run, quant=replace(run.quant, bits=bits + 1))
    grown = save_artifact(tmp_path / "b", shaken_model(finer), finer, ByteTokenizer()) - size
    measured = inspect(tmp_path / "a", masters_of(model))["costs"]["one_more_bit"]
    assert measured == pytest.approx(grown, rel=0.06)
    assert inspect(tmp_path / "a")["costs"]["one_more_bit"] == pytest.approx(grown, rel=0.15)


@pytest.mark.parametrize(
    ("n_layer", "changes"),
    [
        (3, {"mlp_every": 1}),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(1, {}), (3, {}), (4, {}), (4, {"unet": False})]),
    ],
)
def test_one_more_layer_costs_what_it_costs(tmp_path: Path, n_layer: int, changes: dict[str, Any]) -> None:
    run = run_of(QUANTS[0], n_layer=n_layer, **changes)
    size = save_artifact(tmp_path / "a", shaken_model(run), run, ByteTokenizer())
    deeper = run_of(QUANTS[0], n_layer=n_layer + 1, **changes)
    grown = save_artifact(tmp_path / "b", shaken_model(deeper), deeper, ByteTokenizer()) - size
    found = inspect(tmp_path / "a")["costs"]
    assert found["one_more_layer"] == pytest.approx(grown, rel=0.05)
    assert found["remaining_bytes"] == 16_000_000 - size


def test_no_bit_can_be_added_to_eight_and_zeros_have_no_error(tmp_path: Path) -> None:
    run = run_of(Quant(large=512, bits=8))
    model = LanguageModel(run.model, run.quant)  # the MLPs' last matrices are zero
    save_artifact(tmp_path / "a", model, run, ByteTokenizer())
    found = inspect(tmp_path / "a", masters_of(model))
    rows = {row["name"]: row for row in found["tensors"]}
    assert all(row["one_more_bit"] is None for row in found["tensors"])
    assert found["costs"]["one_more_bit"] == 0
    assert rows["blocks.0.mlp.down.weight"]["error"] == rows["blocks.0.mlp.down.weight"]["expected_error"] == 0.0
    assert rows["blocks.0.mlp.down.weight"]["zeros"] == 1.0
