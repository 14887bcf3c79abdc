"""The work on the micro-batches of a step as CUDA graphs.

This is only an optimization. With `enabled` off, the work is called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from jepamba.ops.cuda_graph import CUDAGraph
from jepamba.train.microbatch import MicroBatch


class GraphedMicrobatch:
    """Work on micro-batches as graphs: copies each micro-batch into the tensors that the graph reads, then replays it.

    There is one graph for each number of windows in a pass over all ranks, at most two in a run, and one more for each
    if the latent terms end before the run (`jepa.until`). The size of this
    rank's own micro-batches is no key: graphs contain collectives, so all ranks must capture in the same pass.
    """

    def __init__(self, work: Callable[[MicroBatch], None], device: torch.device, enabled: bool, pool: Any) -> None:
        self.work, self.device, self.enabled, self.pool = work, device, enabled, pool
        self._graphs: dict[tuple[int, bool], tuple[CUDAGraph, MicroBatch]] = {}

    def __call__(self, micro: MicroBatch) -> None:
        """Run the work on `micro`."""
        if not self.enabled:
            self.work(micro.to(self.device))
            return
        key = micro.windows, micro.latent_terms
        if key not in self._graphs:
            # Cloned: later micro-batches are copied into these tensors.
            static = micro.to(self.device).map(torch.clone)
            self._graphs[key] = CUDAGraph(partial(self.work, static), True, self.pool), static
        graph, static = self._graphs[key]
        static.copy_(micro)
        graph()

    def release(self) -> None:
        """Free the graphs and their memory."""
        for graph, _ in self._graphs.values():
            graph.release()
        self._graphs.clear()
