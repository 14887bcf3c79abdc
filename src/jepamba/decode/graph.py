"""Sampling of many streams with one launch per token: step and sampling are one CUDA graph, and the host reads behind.

On a CPU the same work runs without a graph, and the host reads each step. Legend: B streams, N tokens of a stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float
from torch import Tensor

from jepamba.decode.cpu import CpuStep
from jepamba.decode.static_step import StaticStep
from jepamba.errors import DivergedError
from jepamba.ops.cuda_graph import CUDAGraph
from jepamba.ops.dispatch import on_device

AHEAD = 4
"""Steps that are launched on a GPU before the host reads the tokens of the first of them."""

ROWS = 1024
"""Steps whose random numbers are on the device at a time."""

Sample = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, V), uniform random numbers (B,)) → the sampled tokens (B,), on the device, without reading them."""


class GraphedStep:
    """A step that samples its next tokens: `tokens_B` are its input, and then its output."""

    def __init__(self, step: StaticStep | CpuStep, sample: Sample) -> None:
        self.step, self.sample = step, sample
        self.uniform_B = torch.zeros(len(step.tokens_B), dtype=torch.float64, device=step.tokens_B.device)
        self.sampled_B = torch.zeros_like(step.tokens_B)
        """The sampled tokens; -1 where the logits are not finite."""
        self._graph = CUDAGraph(self._work, step.tokens_B.is_cuda)

    def __call__(self) -> None:
        """Feed the tokens, and sample the next with `uniform_B`."""
        with on_device(self.step.tokens_B):
            self._graph()

    def _work(self) -> None:
        self.step()
        with torch.inference_mode():
            bad_B = ~self.step.logits_BV.isfinite().all(-1)
            tokens_B = self.sample(self.step.logits_BV, self.uniform_B)
            self.sampled_B.copy_(tokens_B.masked_fill(bad_B, -1))
            # The steps before the host reads -1 need a token of the vocabulary.
            self.step.tokens_B.copy_(tokens_B.masked_fill(bad_B, 0))


def sampled_tokens(
    step: GraphedStep, uniforms: Callable[[int], Float[Tensor, "N B"]], count: int
) -> Iterator[list[int]]:
    """Yield the next `count` tokens of each stream, one list of B for each step.

    The host reads a token when the steps after it are already launched, so the device never waits for the host.

    Arguments: `uniforms(n)`: the next n rows of random numbers, on the CPU.
    Raises: `DivergedError` at the first step whose logits are not finite.
    """
    tokens_B = step.step.tokens_B
    on_gpu = tokens_B.is_cuda
    ahead = AHEAD if on_gpu else 1
    read = torch.zeros(ahead, len(tokens_B), dtype=torch.int64, pin_memory=on_gpu)
    events = [torch.cuda.Event() if on_gpu else None for _ in range(ahead)]

    def finished(index: int) -> list[int]:
        event = events[index % ahead]
        if event is not None:
            event.synchronize()
        row: list[int] = read[index % ahead].tolist()
        if min(row) < 0:
            raise DivergedError
        return row

    for index in range(count):
        if index % ROWS == 0:
            numbers = uniforms(min(ROWS, count - index)).to(tokens_B.device)
        if index >= ahead:
            yield finished(index - ahead)
        step.uniform_B.copy_(numbers[index % ROWS])
        step()
        read[index % ahead].copy_(step.sampled_B, non_blocking=True)
        event = events[index % ahead]
        if event is not None:
            event.record(torch.cuda.current_stream(tokens_B.device))
    for index in range(max(0, count - ahead), count):
        yield finished(index)
