"""The training step on several ranks is the step of one: data, losses, gradients, weights; real processes over gloo."""

from __future__ import annotations

from dataclasses import asdict
from pydoc_data import topics
from typing import Any

import pytest
import torch

from jepamba.config import Jepa, Run, from_dict, with_settings
from jepamba.data import corpus
from jepamba.distributed import World
from jepamba.errors import UserError
from jepamba.evaluate import score_plain_at, score_sliding
from jepamba.jepa import sample_projections, sigreg, vicreg
from jepamba.jepa.heads import SequenceBatchNorm
from jepamba.optim import Muon
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.measure import term_gradients
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from spawn import together

STEPS = 3
# Seven windows, which no number of ranks but seven deals evenly, all of them in one pass.
ONE_PASS = {"train.tokens_per_step": 7 * 24, "train.tokens_per_micro": 7 * 24}
# Twelve windows, two or three to a micro-batch: one rank has six passes, two three, three and four two.
PASSES = {"train.tokens_per_step": 12 * 24, "train.tokens_per_micro": 2 * 24}
CASES: dict[str, dict[str, Any]] = {
    "one pass": ONE_PASS,
    "batch norm": ONE_PASS | {"jepa.projector": "mlp-batchnorm", "jepa.sigreg_pool": "timestep"},
    "standardized latents": ONE_PASS | {"jepa.projector": "batchnorm", "jepa.sigreg_pool": "timestep"},
    "no latents": PASSES | {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0},
    "a lower layer, with tokens": PASSES
    | {"jepa.layer": 1, "jepa.action": True, "jepa.target_tokens": 4, "jepa.sigreg_sample": "step"},
    "every third position": PASSES | {"jepa.stride": 3, "jepa.sigreg_sample": "step"},
    "averaged targets": ONE_PASS | {"jepa.target_ema": 0.5},
    "balanced": ONE_PASS | {"jepa.balance": 0.4},
    "vicreg": ONE_PASS | {"jepa.vicreg_weight": 2.0, "jepa.weight": 0.0, "jepa.sigreg_weight": 0.0},
    "latents until the last step": PASSES | {"jepa.until": 0.5, "jepa.anneal": True, "jepa.sigreg_sample": "step"},
    "exact, timesteps": PASSES
    | {"jepa.sigreg_sample": "step", "jepa.sigreg_pool": "timestep", "jepa.sigreg_timesteps": 5},
    "exact, positions": PASSES
    | {"jepa.sigreg_sample": "step", "jepa.sigreg_samples": 40, "jepa.sigreg_scale_n": True, "optim.train_conv": False},
    "exact, centered": PASSES | {"jepa.sigreg_sample": "step", "jepa.sigreg_pool": "centered", "data.reset": False},
}
TERMS = ("loss", "ce", "z_loss", "jepa", "sigreg", "vicreg", "grad_norm")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A model with everything in it, of the smallest; documents short enough that windows hold several."""
    folder = tmp_path_factory.mktemp("text")
    text = folder / "topics.txt"
    text.write_text("\0".join(body[:50] for _, body in sorted(topics.topics.items())))
    tiny = from_dict(
        {
            "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 24, "cache": str(folder / "cache")},
            "model": {
                "embed_dim": 8,
                "d_model": 16,
                "n_layer": 2,
                "headdim": 8,
                "d_state": 4,
                "chunk_size": 8,
                "mlp_mult": 2.0,
            },
            "jepa": {"rollout_steps": 2, "weight": 0.3, "sigreg_weight": 0.2, "sigreg_projections": 8}
            | {"sigreg_scale_n": False},
            "quant": {"qat_fraction": 0.0},
            "train": {"steps": 9, "threads": 1, "precision": "fp32", "tokens_per_step": 168, "tokens_per_micro": 168},
        }
    )
    corpus(tiny.data)
    return tiny


def stepped(world: World, run: Run, settings: dict[str, Any]) -> dict[str, Any]:
    """Some steps: their records, the norms of the terms' gradients before them, and all tensors after them."""
    run = with_settings(run, settings)
    text = corpus(run.data)
    state = TrainState(resolve(run, text), text, choose_device(run.train), world)
    trainer, found = Trainer(state), dict[str, Any]()
    found["norms"] = term_gradients(state, 0.0)
    found["records"] = [trainer.train_step(index / 4) for index in range(STEPS)]
    found["progress"] = (state.counters.tokens, state.counters.bytes, state.loader.state())
    state.world.check_equal(dict(state.modules.state_dict()))
    found["tensors"] = {name: value.double().numpy() for name, value in state.tensors().items() if "rng" not in name}
    return found


def every_case(world: World, run: Run) -> dict[str, Any]:
    """All cases, one after another: a process is costly to start."""
    return {name: stepped(world, run, settings) for name, settings in CASES.items()}


@pytest.fixture(scope="module")
def alone(run: Run) -> Any:
    """What one process does."""
    return every_case(World(), run)


@pytest.mark.parametrize("size", [3, *(pytest.param(size, marks=pytest.mark.slow) for size in (2, 4))])
def test_a_step_on_several_ranks_is_the_step_of_one(run: Run, alone: Any, size: int) -> None:
    for rank, results in enumerate(together(size, every_case, run)):
        assert isinstance(results, dict), f"rank {rank}: {results}"
        for name, found in results.items():
            truth, where = alone[name], f"{name}, rank {rank}"
            assert found["progress"] == truth["progress"], where
            # Batch norm of a predictor that starts as a constant, and Adam on biases that it takes out again, make much
            # of rounding: there the first step is compared (and the norm itself in a test of its own).
            compared = 1 if name == "batch norm" else STEPS
            for ours, theirs in list(zip(found["records"], truth["records"], strict=True))[:compared]:
                for term in TERMS:
                    assert ours[term] == pytest.approx(theirs[term], rel=2e-4, abs=1e-7), f"{where}, {term}"
            # A pass is another part of the step on another number of ranks, unless the step is one pass.
            if name in ("one pass", "batch norm", "vicreg"):
                assert found["norms"] == pytest.approx(truth["norms"], rel=1e-3, abs=1e-7), where
            assert found["tensors"].keys() == truth["tensors"].keys(), where
            for key, value in found["tensors"].items() if compared == STEPS else ():
                scale = abs(truth["tensors"][key]).max() + 1e-3
                assert abs(value - truth["tensors"][key]).max() < 2e-3 * scale, f"{where}, {key}"


def test_the_exact_mode_does_not_depend_on_the_micro_batch(run: Run, alone: Any) -> None:
    """The same step in one pass; and by default the statistic does depend on it."""
    for name in ("exact, timesteps", "exact, positions", "exact, centered"):
        whole = stepped(World(), run, CASES[name] | {"train.tokens_per_micro": 12 * 24})
        parts = alone[name]["records"]
        for ours, theirs in zip(whole["records"], parts, strict=True):
            for term in TERMS:
                assert ours[term] == pytest.approx(theirs[term], rel=2e-4, abs=1e-7), f"{name}, {term}"
    by_micro = stepped(World(), run, CASES["exact, timesteps"] | {"jepa.sigreg_sample": "micro"})["records"][0]
    exact = alone["exact, timesteps"]["records"][0]
    assert by_micro["ce"] == pytest.approx(exact["ce"], rel=1e-5)
    assert by_micro["jepa"] == pytest.approx(exact["jepa"], rel=1e-5)
    assert by_micro["sigreg"] > 1.2 * exact["sigreg"]


def normed(world: World, sizes: list[int]) -> dict[str, Any]:
    """Batch norm of this rank's part of a sample, and what follows from it; the loss is a sum over all positions."""
    norm = SequenceBatchNorm(6, world)
    generator = torch.Generator().manual_seed(5)
    weights = torch.randn(sum(sizes), 4, 6, generator=generator)
    whole = 3 + 2 * torch.randn(sum(sizes), 4, 6, generator=generator)
    start = sum(sizes[: world.rank])
    own = slice(start, start + sizes[world.rank])
    x = whole[own].clone().requires_grad_()
    with torch.no_grad():
        norm.weight.copy_(torch.randn(6, generator=generator))
        looked = norm(x)
    y = norm(x)
    assert torch.equal(y, looked)
    (y.square() * weights[own]).sum().backward()
    assert norm.weight.grad is not None
    world.all_reduce_each_([norm.weight.grad])
    assert x.grad is not None
    values = {"y": y, "x": x.grad, "weight": norm.weight.grad, **dict(norm.named_buffers())}
    return {name: value.detach().tolist() for name, value in values.items()}


def test_batch_norm_is_over_all_ranks() -> None:
    truth = normed(World(), [6])
    parts = together(3, normed, [1, 3, 2])
    for name in ("y", "x"):
        joined = torch.tensor([row for part in parts for row in part[name]])
        torch.testing.assert_close(joined, torch.tensor(truth[name]), rtol=1e-4, atol=1e-5)
    for name in ("weight", "running_mean", "running_var"):
        for part in parts:
            torch.testing.assert_close(torch.tensor(part[name]), torch.tensor(truth[name]), rtol=1e-5, atol=1e-5)
    assert [part["num_batches_tracked"] for part in parts] == [truth["num_batches_tracked"]] * 3 == [1] * 3


SAMPLES = [[1, 1, 5], pytest.param([3, 4], marks=pytest.mark.slow)]
"""Windows of seven by ranks."""


def part_of_a_sample(world: World, sizes: list[int], settings: dict[str, Any]) -> dict[str, Any]:
    """SIGReg of this rank's windows of one sample, and its gradient by them."""
    config = Jepa(sigreg_projections=6, **settings)
    whole = torch.randn(sum(sizes), 7, 5, generator=torch.Generator().manual_seed(3)) + 0.3
    start, own = sum(sizes[: world.rank]), sizes[world.rank]
    z = whole[start : start + own].clone().requires_grad_()
    projections = sample_projections(config, 5, (own, 7), seed=1, step=2, total_windows=sum(sizes), rank=world.rank)
    sample_size = torch.tensor(float(sum(sizes) * (1 if config.sigreg_pool == "timestep" else 7)))
    statistic = sigreg(z, config, projections, world=world, sample_size=sample_size)
    statistic.backward()
    assert z.grad is not None
    return {"statistic": statistic.item(), "z": z.grad.tolist()}


@pytest.mark.parametrize(
    "settings",
    [{"sigreg_pool": "timestep", "sigreg_timesteps": 3, "sigreg_scale_n": False}, {"sigreg_pool": "centered"}],
    ids=["timestep", "centered, times N"],
)
@pytest.mark.parametrize("sizes", SAMPLES)
def test_sigreg_and_its_gradient_are_those_of_the_whole_sample(settings: dict[str, Any], sizes: list[int]) -> None:
    truth = part_of_a_sample(World(), [7], settings)
    parts = together(len(sizes), part_of_a_sample, sizes, settings)
    for part in parts:
        assert part["statistic"] == pytest.approx(truth["statistic"], rel=1e-5)
    joined = torch.tensor([row for part in parts for row in part["z"]])
    assert joined.abs().max() > 0
    torch.testing.assert_close(joined, torch.tensor(truth["z"]), rtol=1e-4, atol=1e-7)


def vicreg_of_a_part(world: World, sizes: list[int]) -> dict[str, Any]:
    """VICReg of this rank's windows of one sample, and its gradient by them."""
    generator = torch.Generator().manual_seed(3)
    whole = torch.randn(sum(sizes), 7, 5, generator=generator) @ torch.randn(5, 5, generator=generator) * 0.3 + 2
    start, own = sum(sizes[: world.rank]), sizes[world.rank]
    z = whole[start : start + own].clone().requires_grad_()
    value = vicreg(z, world=world)
    value.backward()
    assert z.grad is not None
    return {"value": value.item(), "z": z.grad.tolist()}


@pytest.mark.parametrize("sizes", SAMPLES)
def test_vicreg_and_its_gradient_are_those_of_the_whole_sample(sizes: list[int]) -> None:
    truth = vicreg_of_a_part(World(), [7])
    parts = together(len(sizes), vicreg_of_a_part, sizes)
    assert [part["value"] for part in parts] == [pytest.approx(truth["value"], rel=1e-5)] * len(sizes)
    joined = torch.tensor([row for part in parts for row in part["z"]])
    torch.testing.assert_close(joined, torch.tensor(truth["z"]), rtol=1e-4, atol=1e-7)


def scored(world: World, run: Run) -> list[dict[str, Any]]:
    """The plain and the sliding score of a fresh model."""
    text = corpus(run.data)
    model = TrainState(resolve(run, text), text, choose_device(run.train)).model
    plain = score_plain_at(model, text.val, 24, (1.0, 0.7), limit=1000, tokens_per_batch=100, world=world)
    sliding = score_sliding(model, text.val, 24, stride=7, limit=300, tokens_per_batch=100, world=world)
    return [asdict(score) | {"seconds": 0.0} for score in (*plain, sliding)]


def test_ranks_share_the_scoring(run: Run) -> None:
    truth = scored(World(), run)
    for found in together(3, scored, run):
        for ours, theirs in zip(found, truth, strict=True):
            for key, value in theirs.items():
                assert ours[key] == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), key


SHAPES = [(8, 24), (24, 8), (16, 16), (8, 24), (1, 5), (24, 8), (40, 8)]


def muon(world: World, dtype: str) -> list[Any]:
    """Four steps of Muon on matrices of several shapes: weights and momenta."""
    generator = torch.Generator().manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]
    optimizer = Muon(
        params,
        lr=0.02,
        momentum=0.9,
        steps=3,
        row_norm=True,
        weight_decay=0.1,
        compute_dtype=getattr(torch, dtype),
        world=world,
    )
    for _ in range(4):
        for p in params:
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
    world.check_equal({str(i): p for i, p in enumerate(params)})
    return [value.detach().tolist() for p in params for value in (p, optimizer.state[p]["momentum"])]


@pytest.mark.parametrize(("size", "dtype"), [(2, "float32"), pytest.param(8, "bfloat16", marks=pytest.mark.slow)])
def test_muon_shared_by_ranks_is_muon(size: int, dtype: str) -> None:
    """More ranks than matrices too; every rank keeps the whole momentum."""
    truth = muon(World(), dtype)
    for found in together(size, muon, dtype):
        for ours, theirs in zip(found, truth, strict=True):
            torch.testing.assert_close(torch.tensor(ours), torch.tensor(theirs), rtol=1e-5, atol=1e-6)


def refusal(world: World, run: Run) -> str:
    """What asks for more than there is."""
    with pytest.raises(UserError) as error:
        stepped(world, run, {"train.tokens_per_step": 24, "train.tokens_per_micro": 24})
    return str(error.value)


def test_what_cannot_be_dealt_is_refused_in_one_line(run: Run) -> None:
    for message in together(2, refusal, run):
        assert "2 processes, but a step has 1 windows" in message
        assert "\n" not in message
