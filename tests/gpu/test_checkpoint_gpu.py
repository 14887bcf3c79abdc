"""Checkpoints of what lies on a GPU: a copy of the moment of the call, brought to the host while work goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from jepamba.train.checkpoint import checkpoints, load_checkpoint
from jepamba.train.writer import CheckpointWriter
from needs_gpus import needs_gpus

pytestmark = needs_gpus()


def state_of_a_run(value: float) -> dict[str, Tensor]:
    """Some 70 MB on the GPU, and what stays on the CPU."""
    here = torch.device("cuda")
    tensors = {f"weights/{n}": torch.full((1024, 1024), value, device=here) for n in range(16)}
    return tensors | {"half": torch.full((99,), value, device=here, dtype=torch.bfloat16), "rng": torch.arange(5)}


@pytest.mark.parametrize("memory", [True, False], ids=["copied beside", "no memory beside"])
def test_what_is_computed_after_the_call_is_not_in_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memory: bool
) -> None:
    if not memory:

        def full(value: Tensor, *arguments: object, **options: object) -> Tensor:
            raise torch.cuda.OutOfMemoryError("no memory")

        monkeypatch.setattr(Tensor, "clone", full)
    tensors = state_of_a_run(1.0)
    waste = torch.randn(4096, 4096, device="cuda")
    with CheckpointWriter(tmp_path, 9, torch.device("cuda", torch.cuda.current_device())) as writer:
        for step in (1, 2, 3):
            # The stream is busy when the call comes, and changes everything right behind it.
            for _ in range(20):
                waste = waste @ waste / 4096
            writer.save(step, tensors, {"n": step})
            for value in tensors.values():
                value += 1
    assert writer.failure() is None
    for step, path in enumerate(checkpoints(tmp_path), 1):
        saved, state = load_checkpoint(path)
        assert state["n"] == step
        for name, value in saved.items():
            expected = torch.arange(5) + step - 1 if name == "rng" else torch.full_like(value, float(step))
            assert torch.equal(value, expected), (step, name)


def test_the_copy_beside_is_given_back_and_the_pinned_memory_is_kept(tmp_path: Path) -> None:
    tensors = state_of_a_run(1.0)
    before = torch.cuda.memory_allocated()
    with CheckpointWriter(tmp_path, 2, torch.device("cuda", torch.cuda.current_device())) as writer:
        writer.save(1, tensors, {})
        assert writer.failure(wait=True) is None
        places = {name: value.data_ptr() for name, value in writer._host_copy.items()}
        assert all(value.is_pinned() for value in writer._host_copy.values())
        assert torch.cuda.memory_allocated() == before
        writer.save(2, tensors, {})
    assert {name: value.data_ptr() for name, value in writer._host_copy.items()} == places
    assert torch.cuda.memory_allocated() == before
