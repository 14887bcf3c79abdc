"""Work on a GPU as a captured graph: run as it is written the first time, recorded at once, replayed ever after.

A graph works on tensors that stay where they are: inputs, weights, gradients, sums, and the state that is carried from
one micro-batch to the next. Sums over the ranks are a part of it, like any other work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from jepamba.train.inputs import Inputs, sent


class Captured:
    """`work`, called as it is, or (with `captures`) as a graph: one for all inputs of the same shapes.

    `work` must leave its results in tensors of its own, and return nothing.
    """

    def __init__(self, work: Callable[[Inputs], None], device: torch.device, captures: bool) -> None:
        self.work, self.device, self.captures = work, device, captures
        self._graphs: dict[tuple[torch.Size, ...], tuple[torch.cuda.CUDAGraph, Inputs]] = {}

    def __call__(self, inputs: Inputs) -> None:
        """Do the work on `inputs`."""
        if not self.captures:
            self.work(inputs.mapped(lambda value: sent(value, self.device)))
            return
        shapes = tuple(value.shape for value in inputs.tensors())
        if shapes not in self._graphs:
            # Copies: what comes later is written over them.
            own = inputs.mapped(lambda value: sent(value, self.device).clone())
            self._graphs[shapes] = (self._capture(own), own)
            return
        graph, own = self._graphs[shapes]
        for there, here in zip(own.tensors(), inputs.tensors(), strict=True):
            there.copy_(sent(here, self.device), non_blocking=True)
        graph.replay()

    def _capture(self, inputs: Inputs) -> torch.cuda.CUDAGraph:
        """Do this work (and compile what is to be compiled), and record the graph for what follows."""
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work(inputs)
        torch.cuda.current_stream().wait_stream(stream)
        # What the first pass used is not what the graph will use: its memory is given back.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Graphs follow one another and leave nothing in their memory: they share it. Other threads (the loader's, that
        # which watches over NCCL) may go on meanwhile.
        pool = next((other.pool() for other, _ in self._graphs.values()), None)
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            self.work(inputs)
        return graph
