"""CUDA graphs: record work of hundreds of kernel launches once, and replay it with one launch.

This is only an optimization. With `enabled` off, both classes call the work directly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch

from jepamba.train.microbatch import MicroBatch


class CUDAGraph:
    """A function without arguments and results, over tensors at fixed addresses, as a graph.

    The first call with a `key` runs `work` directly, which compiles kernels and makes persistent allocations, and then
    captures it. Every later call with this key replays the graph. The key stands for everything besides the values of
    tensors that the work depends on. Graphs of one `pool` (`torch.cuda.graph_pool_handle`) share memory and must run
    one after another.
    """

    def __init__(self, work: Callable[[], None], enabled: bool, pool: Any = None) -> None:
        self.work, self.enabled, self.pool = work, enabled, pool
        self._graphs: dict[Hashable, torch.cuda.CUDAGraph] = {}

    def __call__(self, key: Hashable = None) -> None:
        """Run the work once."""
        if key in self._graphs:
            self._graphs[key].replay()
            return
        if not self.enabled:
            self.work()
            return
        # On the stream of the capture, so that no kernel of this first run is still running during the capture.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream().wait_stream(stream)
        # The graph does not use the memory of the first run, so that memory is given back.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # "thread_local", because the loader's thread pins memory during the capture and NCCL runs its own thread.
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            self.work()
        self._graphs[key] = graph

    def release(self) -> None:
        """Free the graphs and their memory; the next call captures again. NCCL waits for graphs that contain
        collectives, so they must be released before the process group is destroyed."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()


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
