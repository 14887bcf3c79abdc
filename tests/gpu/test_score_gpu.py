"""Scores on a GPU, whose products are TF32, against those of a CPU in fp32."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from small import small_run

from jepamba.data import corpus
from jepamba.data.tokens import Tokens
from jepamba.evaluate import Score, score_carried, score_plain, score_sliding
from jepamba.evaluate.adapted import score_adapted
from jepamba.evaluate.many import score_documents
from jepamba.model import LanguageModel
from jepamba.train import resolve
from jepamba.train.device import choose_device
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer
from needs_gpus import needs_gpus

pytestmark = [
    *needs_gpus(),
    pytest.mark.filterwarnings("default"),
]
TARGETS = 6000


def test_the_scores_of_a_gpu_are_those_of_a_cpu(tmp_path: Path) -> None:
    run = small_run(tmp_path, {"train.steps": 40})
    text = corpus(run.data)
    run = resolve(run, text)
    trainer = Trainer(TrainState(run, text, choose_device(run.train)))
    for step in range(40):
        trainer.train_step(step / 40)
    gpu = trainer.state.model
    cpu = deepcopy(gpu).cpu()

    document = Tokens([text.val.read(0, 3000)], text.tokenizer)

    def scores(model: LanguageModel) -> dict[str, Score]:
        common: dict[str, Any] = {"temperature": 1.1, "limit": TARGETS}
        return {
            "plain": score_plain(model, text.val, 256, **common),
            "sliding": score_sliding(model, text.val, 256, stride=64, **common),
            "carried": score_carried(model, text.val, 256, **common),
            "adapted": score_adapted(model, text.val, **common),
            "documents": score_documents(model, [document], 256, carry=True, reset=True, temperature=1.1)[0],
        }

    on_gpu, on_cpu = scores(gpu), scores(cpu)
    for mode, score in on_gpu.items():
        assert score.bpb == pytest.approx(on_cpu[mode].bpb, rel=1e-4), mode
    # Adaptation moves the score by more than the two devices differ.
    assert abs(on_gpu["adapted"].bpb - on_gpu["carried"].bpb) > 10 * 1e-4 * on_gpu["carried"].bpb
    assert torch.backends.cuda.matmul.fp32_precision != "tf32"
