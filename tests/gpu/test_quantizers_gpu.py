"""Quantizers on a GPU: scale search and bit changes under captured graphs, and a submission's script with kernels."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from small import small_run

from jepamba.config import Run
from jepamba.data import Corpus, corpus
from jepamba.quant import quantizer_named
from jepamba.submission import About, check, write_submission
from jepamba.train import resolve, train
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from needs_gpus import needs_gpus

pytestmark = [
    *needs_gpus(),
    pytest.mark.filterwarnings("default"),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Corpus]:
    """Two micro-batches a step of a small model that uses every kind of quantizer, on the English inside Python."""
    run = small_run(
        tmp_path_factory.mktemp("cache"),
        {
            "jepa.weight": 0.0,
            "jepa.sigreg_weight": 0.0,
            "quant.embedding": "int6",
            "quant.vectors": "int8",
            "quant.budget_bytes": 220_000,
            "optim.ghost_steps": 0,
            "train.steps": 12,
            "eval.stride": 0,
            "eval.sample_tokens": 4,
        },
    )
    text = corpus(run.data)
    return resolve(run, text), text


@pytest.mark.parametrize("name", ["int2", "int4", "int8"])
def test_a_gpu_and_a_cpu_choose_alike(name: str) -> None:
    w, quantizer = torch.randn(300, 200), quantizer_named(name)
    here, there = quantizer.encode(w), quantizer.encode(w.cuda())
    for stream, value in here.items():
        # A division may be rounded otherwise: an integer at a half step may change.
        assert (there[stream].cpu() == value).float().mean() > 0.99, stream
    on_cpu = quantizer.decode({stream: value.cpu() for stream, value in there.items()}, (300, 200))
    assert torch.equal(quantizer.decode(there, (300, 200)).cpu(), on_cpu)


def losses(run: Run, text: Corpus, changed: dict[str, int]) -> list[float]:
    """Cross-entropies of six steps, with other bits from the fourth on."""
    state = TrainState(run, text, choose_device(run.train))
    trainer = Trainer(state)
    before = [trainer.train_step(0.0)["ce"] for _ in range(3)]
    state.model.set_bit_allocation(changed)
    return before + [trainer.train_step(0.0)["ce"] for _ in range(3)]


def test_widths_changed_between_replays_are_what_the_next_pass_sees(small: tuple[Run, Corpus]) -> None:
    run, text = small
    coarse = {f"blocks.{block}.mixer.in_proj.weight": 2 for block in range(4)}
    replayed = losses(run, text, coarse)
    launched = losses(replace(run, train=replace(run.train, graph=False)), text, coarse)
    assert replayed == pytest.approx(launched, rel=1e-4)
    unchanged = losses(run, text, {})
    assert replayed[:3] == pytest.approx(unchanged[:3], rel=1e-5)
    assert abs(replayed[3] - unchanged[3]) > 1e-3


def test_the_script_of_a_submission_scores_on_the_gpu(small: tuple[Run, Corpus], tmp_path: Path) -> None:
    run, _ = small
    summary = train(run, tmp_path / "run")
    assert summary["artifact_bytes"] <= 220_000
    for packed in (False, True):
        out = write_submission(tmp_path / "run", tmp_path / f"out{packed}", About(), packed=packed)
        found = check(out, tmp_path / "run")
        assert found["bpb"] == pytest.approx(summary["bpb_calibrated"]["bpb"], abs=1e-4)
