"""A Muon step on a GPU in bfloat16 against float64 and the plain path, captured in a CUDA graph."""

from __future__ import annotations

import pytest
import torch

from jepamba.ops.dispatch import use_kernels
from jepamba.ops.muon import orthogonalize
from needs_gpus import needs_gpus
from ops.compare import random, relative
from ops.muon.cases import Trained, exact_direction

pytestmark = [
    *needs_gpus(),
    # Warnings of the compiler's own making are not this package's.
    pytest.mark.filterwarnings("default"),
]
SHAPES = [(160, 160), (340, 160), (400, 160), (160, 400), (340, 160), (84, 160), (33, 77), (160, 160)]


@pytest.mark.parametrize("steps", [3, 5])
@pytest.mark.parametrize("shape", [(2, 40, 100), (2, 100, 40), (2, 640, 640), (2, 1354, 640)], ids=str)
def test_orthogonalize_in_bf16(shape: tuple[int, ...], steps: int) -> None:
    update_SRC = random(*shape, dtype=torch.bfloat16, seed=0)
    truth = exact_direction(update_SRC, steps)
    ours = orthogonalize(update_SRC, steps)
    assert ours.dtype == torch.bfloat16
    assert ours.is_contiguous()
    assert relative(ours, truth) < 0.05


@pytest.mark.parametrize("row_norm", [False, True])
def test_captured_steps_are_no_less_exact_than_plain_steps(row_norm: bool) -> None:
    """The graph reads learning rate, momentum and gradients of each step from their tensors."""
    fused, plain = (Trained(SHAPES, as_tensors=True, row_norm=row_norm, dtype=torch.bfloat16) for _ in range(2))
    stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    for step in range(4):
        fused.prepare(step)
        plain.prepare(step)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            if step == 0:
                fused.muon.step()
            else:
                graph.replay()
        torch.cuda.synchronize()
        if step == 0:
            with torch.cuda.graph(graph, stream=stream):
                fused.muon.step()
        with use_kernels(False):
            plain.muon.step()
    for ours, theirs in zip(fused.errors(), plain.errors(), strict=True):
        assert ours < 1.05 * theirs
        assert theirs < 0.05
    for p, buffer in zip(fused.params, fused.buffers, strict=True):
        assert fused.muon.state[p]["momentum"].dtype == torch.float32
        assert relative(fused.muon.state[p]["momentum"], buffer) < 1e-6
