"""Tests of FP8 products: exactness of the weights, when FP8 is used, and when it is refused."""

from __future__ import annotations

from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
from torch import Tensor

from jepamba.config import ConfigError, Model, Quant, Run, Train, with_settings
from jepamba.data import corpus
from jepamba.errors import UserError
from jepamba.model import LanguageModel
from jepamba.model.layers import Linear, Mlp
from jepamba.ops.fp8 import linear as fp8
from jepamba.ops.fp8 import mlp as fp8_mlp
from jepamba.ops.norms import relu2_norm
from jepamba.presets import load_preset
from jepamba.train import resolve
from jepamba.train.device import DeviceConfig, place
from jepamba.train.micro import MicroPass
from jepamba.train.session import Session
from jepamba.train.step import training_step

TINY: dict[str, Any] = {
    "vocab_size": 37,
    "embed_dim": 16,
    "d_model": 32,
    "n_layer": 2,
    "d_state": 8,
    "headdim": 8,
    "mlp_mult": 2.0,
    "chunk_size": 8,
}


def settled(linear: Linear, *, quantized: bool = True) -> fp8.Weight8:
    linear.train()
    linear.quantized, linear.fp8 = quantized, True
    linear.settle(torch.bfloat16)
    assert linear.weight8 is not None
    return linear.weight8


def spread(linear: Linear) -> None:
    """Rows of very different magnitude, a row of zeros, and a row with a single value."""
    with torch.no_grad():
        linear.w.mul_(torch.logspace(-12, 12, len(linear.w)).unsqueeze(1))
        linear.w[3] = 0
        linear.w[4, 1:] = 0


def held(weight: fp8.Weight8, rows: int) -> Tensor:
    return weight.codes_OK[:rows].float() * weight.scale_O[:rows, None]


@pytest.mark.parametrize(
    "quant",
    [
        *(Quant(bits=bits, scale=scale, large=1) for bits in (2, 3, 4, 5) for scale in ("absmax", "clip", "hessian")),
        Quant(bits=4, group=4096, large=1),
        Quant(bits=4, large=10**9),
    ],
    ids=lambda quant: f"int{quant.bits}-{quant.scale}-g{quant.group}" if quant.large == 1 else "fp8-row",
)
def test_weights_on_these_grids_are_held_to_the_bit(quant: Quant) -> None:
    linear = Linear(48, 41, quant)
    spread(linear)
    weight = settled(linear)
    stored = linear.grids["w"].decode(linear.encode("w"), (41, 48))
    assert torch.equal(held(weight, 41), stored)
    assert stored.count_nonzero() > 41 * 20
    # The other way round, and the rows that fill up.
    assert weight.codes_OK.shape == (48, 48)
    assert torch.equal(weight.codes_KO.float(), weight.codes_OK.float().t())
    assert weight.codes_OK[41:].float().count_nonzero() == weight.scale_O[41:].count_nonzero() == 0


@pytest.mark.parametrize(("bits", "group", "quantized"), [(6, 0, True), (8, 0, True), (4, 16, True), (4, 0, False)])
def test_other_weights_are_rounded_by_row(bits: int, group: int, quantized: bool) -> None:
    linear = Linear(48, 41, Quant(bits=bits, group=group, large=1))  # type: ignore[arg-type]
    spread(linear)
    weight = settled(linear, quantized=quantized)
    linear.fp8 = False
    seen = linear.weight("w")
    kept = seen.norm(dim=1) > 0
    error = ((held(weight, 41) - seen).norm(dim=1) / seen.norm(dim=1))[kept]
    assert 1e-3 < error.mean() < 0.03
    assert error.max() < 0.07  # half the spacing: no value is further off, and none is lost


def test_settling_again_keeps_the_tensors_and_renews_what_is_in_them() -> None:
    linear = Linear(32, 32, Quant(large=1))
    weight = settled(linear)
    places, before = [value.data_ptr() for value in weight], held(weight, 32)
    with torch.no_grad():
        linear.w.mul_(4.0)
    assert [value.data_ptr() for value in settled(linear)] == places
    assert torch.equal(held(weight, 32), 4.0 * before)


@pytest.mark.parametrize("mixers", [False, True])
def test_only_training_passes_over_settled_weights_use_them(monkeypatch: pytest.MonkeyPatch, mixers: bool) -> None:
    calls: list[tuple[int, ...]] = []
    truth = fp8.product

    def counted(a: fp8.Rounded, codes_OK: Tensor, scale_O: Tensor) -> Tensor:
        calls.append(tuple(codes_OK.shape))
        return truth(a, codes_OK, scale_O)

    for module in (fp8, fp8_mlp):
        monkeypatch.setattr(module, "product", counted)
    torch.manual_seed(1)
    model = LanguageModel(Model(**TINY), Quant(large=1))
    for name, value in model.named_parameters():
        if name.endswith("down.w"):
            torch.nn.init.normal_(value, std=0.2)
    tokens = torch.randint(37, (2, 40))

    def pass_loss() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            loss = model.loss(model(tokens)[0], tokens, 0.0).total
        loss.backward()
        return loss.detach()

    def gradients() -> dict[str, Tensor]:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        return found

    model.train().set_quantized(True)
    model.settle(torch.bfloat16)
    with model.settled():
        loss_bf16 = pass_loss()
    plain = gradients()
    model.use_fp8(mixers=mixers)
    model.settle(torch.bfloat16)
    pass_loss()
    gradients()
    assert calls == []
    with model.settled():
        model.eval()
        with torch.no_grad():
            model(tokens)
        assert calls == []
        model.train()
        loss_fp8 = pass_loss()
    ours = gradients()
    # The first block's up and down, forward and backward; in each block out_proj (in_proj has no whole 16s here).
    assert sorted(calls) == sorted([(64, 32), (32, 64)] * 2 + [(32, 32)] * (4 if mixers else 0))
    assert loss_fp8 != loss_bf16
    assert abs(loss_fp8 - loss_bf16) < 5e-3 * loss_bf16
    assert ours.keys() == plain.keys()
    for name, grad in ours.items():
        assert (grad - plain[name]).norm() < 0.2 * plain[name].norm(), name
    every, of_all = (torch.cat([found[name].flatten() for name in plain]) for found in (ours, plain))
    assert (every - of_all).norm() < 0.05 * of_all.norm()


def test_the_fused_mlp_is_its_parts() -> None:
    """Output and all gradients are bitwise equal."""
    mlp = Mlp(Model(**TINY), Quant(large=1)).train()
    torch.nn.init.normal_(mlp.down.w, std=0.3)
    for linear in (mlp.up, mlp.down):
        settled(linear)
        linear.use_settled()
    x, scale, dy = torch.randn(2, 50, 32).bfloat16(), torch.rand(32), torch.randn(2, 50, 32).bfloat16()

    def run(function: Any) -> list[Tensor]:
        inputs = [x.clone().requires_grad_(), scale.clone().requires_grad_()]
        out = function(*inputs)
        weights = [linear.leaves["w"] for linear in (mlp.up, mlp.down)]
        return [out, *torch.autograd.grad(out, inputs + weights, dy)]

    whole = run(mlp)
    parts = run(lambda x, scale: mlp.down(relu2_norm(mlp.up(x)), scale))
    for ours, apart in zip(whole, parts, strict=True):
        assert torch.equal(ours, apart)
    assert whole[0].grad_fn is not None
    assert "Fp8Mlp" in whole[0].grad_fn.name()


def test_training_steps_lose_as_with_bf16_products(tmp_path: Path) -> None:
    """Emulate the products: multiply the same codes in fp32."""
    mine = tmp_path / "mine.txt"
    mine.write_text("\0".join(body for _, body in sorted(topics.topics.items())[40:80]))
    run = with_settings(
        load_preset("submission-bpe"),
        {
            "data.tokenizer": "bytes",
            "data.train": str(mine),
            "data.seq_len": 32,
            "model.vocab_size": 0,
            "model.d_model": 64,
            "model.embed_dim": 48,
            "model.headdim": 16,
            "model.d_state": 8,
            "model.n_layer": 2,
            "jepa.sigreg_projections": 16,
            "train.tokens_per_micro": 256,
            "train.tokens_per_step": 512,
        },
    )
    text = corpus(run.data)

    def losses(products: str) -> list[float]:
        session = Session(
            resolve(with_settings(run, {"train.products": products}), text),
            text,
            DeviceConfig(torch.device("cpu"), torch.bfloat16, "asked by hand: `place` refuses FP8 on a CPU"),
        )
        micro = MicroPass(session)
        return [training_step(micro, 0.0)["ce"] for _ in range(4)]

    bf16, mlp, both = losses("bf16"), losses("fp8-mlp"), losses("fp8")
    assert bf16[-1] < bf16[0] - 0.2
    for ours in (mlp, both):
        assert ours == pytest.approx(bf16, rel=1e-2)
    assert len({tuple(values) for values in (bf16, mlp, both)}) == 3


def test_it_is_refused_where_it_cannot_be() -> None:
    with pytest.raises(UserError, match=r"train\.products = fp8 needs a GPU.*on the CPU.*--train\.products bf16"):
        place(Train(steps=1, device="cpu", products="fp8"))
    with pytest.raises(ConfigError, match=r"train\.products = fp8-mlp with train\.precision = fp32"):
        with_settings(Run(), {"train.products": "fp8-mlp", "train.precision": "fp32"})
