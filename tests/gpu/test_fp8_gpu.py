"""FP8 products on a GPU: at a real model's sizes against float64, under a captured graph, and in a training step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fp8_cases import (
    BF16,
    BOTH,
    MLP,
    ROUNDED,
    beyond,
    hidden_errors,
    linear_errors,
    mlp_errors,
    relative,
    settled_linear,
    unrounded,
)
from small import small_run
from torch import Tensor

from jepamba.config import Quant, Run, with_settings
from jepamba.data import Corpus, corpus
from jepamba.ops.fp8 import linear as fp8
from jepamba.ops.fp8.linear import round_rows_plain, round_rows_triton
from jepamba.train import resolve
from jepamba.train.device import FP8_CAPABILITY, choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not torch.cuda.is_available() or torch.cuda.get_device_capability() < FP8_CAPABILITY,
        reason="needs a CUDA GPU that multiplies FP8",
    ),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]


@pytest.mark.parametrize("shape", [(700, 640), (130, 1424), (65, 2560), (3, 16), (5, 7000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("with_factor", [False, True])
def test_the_kernel_rounds_as_pytorch_does(shape: tuple[int, int], dtype: torch.dtype, with_factor: bool) -> None:
    x = (torch.randn(shape, device="cuda") * torch.logspace(-30, 30, shape[0], device="cuda").unsqueeze(1)).to(dtype)
    x[1] = 0
    factor = torch.rand(shape[1], device="cuda") + 0.1 if with_factor else None
    ours, plain = round_rows_triton(x, factor), round_rows_plain(x, factor)
    assert torch.equal(ours.scale_N1, plain.scale_N1)
    assert torch.equal(ours.codes_NK.float(), plain.codes_NK.float())


@pytest.mark.parametrize(("inputs", "outputs"), [(640, 1418), (640, 640), (640, 2560), (2560, 640), (16, 32)])
@pytest.mark.parametrize("tokens", [4096, 300])
@pytest.mark.parametrize(("bits", "quantized"), [(4, True), (5, True), (8, True), (4, False)])
def test_products(tokens: int, inputs: int, outputs: int, bits: int, quantized: bool) -> None:
    quant = Quant(bits=bits, large=64)
    errors = linear_errors(tokens, inputs, outputs, quant, "cuda", scaled=outputs % 16 == 0, quantized=quantized)
    rounded = ROUNDED if quantized and bits <= 5 else BOTH
    assert beyond(errors, rounded, few=tokens <= inputs) == {}


@pytest.mark.parametrize("shape", [(700, 2560), (33, 640), (5, 7000), (3, 48)], ids=str)
def test_the_mlps_kernels_round_what_they_compute(shape: tuple[int, int]) -> None:
    errors = hidden_errors(*shape, torch.bfloat16, "cuda")
    # Forward and backward kernel each compute h: where its last bit differs, its code may.
    bounds = {"h": BF16, "du": BF16, "h in fp8": 1e-2, "du in fp8": 1e-6}
    assert {name: error for name, error in errors.items() if not error < bounds[name]} == {}


@pytest.mark.parametrize(("tokens", "width", "hidden"), [(4096, 640, 2560), (300, 64, 256)])
def test_an_mlp(tokens: int, width: int, hidden: int) -> None:
    errors = mlp_errors(tokens, width, hidden, "cuda")
    assert {name: error for name, error in errors.items() if not error < MLP} == {}


@pytest.mark.parametrize(("fast", "bound"), [(False, BF16), (True, 2e-2)])
def test_the_hardwares_product_is_that_of_the_same_numbers(
    fast: bool, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Apart from the rounding to FP8, which both have: bf16, and the accumulators' fewer bits where they are fast."""
    monkeypatch.setattr(fp8, "FAST_ACCUMULATION", fast)
    linear = settled_linear(2560, 640, Quant(large=64), "cuda")
    assert linear.weight8 is not None
    x = round_rows_triton(torch.randn(512, 2560, device="cuda").relu().square().bfloat16(), None)
    ours = fp8.product(x, linear.weight8.codes_OK, linear.weight8.scale_O)
    truth = unrounded(x) @ (linear.weight8.codes_OK.double().t() * linear.weight8.scale_O)
    kept = truth.norm(dim=0) > 0
    error = (ours.double() - truth)[:, kept].norm(dim=0) / truth[:, kept].norm(dim=0)
    assert kept.sum() == 639
    assert error.max() < bound


def test_a_captured_product_reads_what_was_settled_last() -> None:
    linear = settled_linear(640, 1418, Quant(large=64), "cuda")
    x = torch.randn(2048, 640, device="cuda").bfloat16()

    def run() -> Tensor:
        out: Tensor = linear(x, rows=1424)
        return out

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    graph.replay()
    before = captured.clone()
    assert relative(before, run().double()) < BF16
    with torch.no_grad():
        linear.w.mul_(-2.0)
    linear.release()
    linear.settle(torch.bfloat16)
    linear.use_settled()
    graph.replay()
    assert torch.equal(captured, -2.0 * before)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Corpus]:
    """Two micro-batches a step of a model with everything in it, on the English inside Python."""
    run = small_run(tmp_path_factory.mktemp("cache"), {"optim.ghost_steps": 0, "train.products": "fp8"})
    text = corpus(run.data)
    return resolve(run, text), text


def steps(run: Run, text: Corpus, count: int) -> list[dict[str, float]]:
    trainer = Trainer(TrainState(run, text, choose_device(run.train)))
    return [trainer.train_step(0.0) for _ in range(count)]


def test_training_learns_as_with_bf16_products(small: tuple[Run, Corpus]) -> None:
    run, text = small
    bf16 = [record["ce"] for record in steps(with_settings(run, {"train.products": "bf16"}), text, 12)]
    for products in ("fp8", "fp8-mlp"):
        ours = [record["ce"] for record in steps(with_settings(run, {"train.products": products}), text, 12)]
        assert ours == pytest.approx(bf16, rel=1e-2)
        assert ours[-1] < ours[0] - 0.1
        assert ours != bf16


@pytest.mark.parametrize("grids", [{}, {"quant.scale": "clip", "quant.qat_fraction": 0.5}, {"quant.bits": 8}], ids=str)
def test_the_graph_does_what_the_launches_do(small: tuple[Run, Corpus], grids: dict[str, object]) -> None:
    run = with_settings(small[0], grids)
    replayed, launched = (
        steps(run, small[1], 4),
        steps(replace(run, train=replace(run.train, graph=False)), small[1], 4),
    )
    for a, b in zip(replayed, launched, strict=True):
        # Where the last bit of a sum differs, a code may, and that is 2⁻³ of a value.
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-3)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=1e-2)


def test_the_same_run_twice_is_the_same(small: tuple[Run, Corpus]) -> None:
    run, text = small
    assert steps(run, text, 4) == steps(run, text, 4)
