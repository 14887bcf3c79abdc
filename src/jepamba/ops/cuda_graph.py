"""CUDA graphs: record work of hundreds of kernel launches once, and replay it with one launch.

This is only an optimization. With `enabled` off, the work is called directly.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch

from jepamba.ops.garbage import no_garbage_collection


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
        with (
            no_garbage_collection(),
            torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"),
        ):
            self.work()
        self._graphs[key] = graph

    def release(self) -> None:
        """Free the graphs and their memory; the next call captures again. NCCL waits for graphs that contain
        collectives, so they must be released before the process group is destroyed."""
        for graph in self._graphs.values():
            graph.reset()
        self._graphs.clear()
