"""Work on a GPU as a CUDA graph: its hundreds of launches become one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class Captured:
    """`work`, which takes and returns nothing, over tensors that stay where they are.

    The first call runs it as it is written, which compiles what is to be compiled and makes what is made once; it is
    then captured, and every later call replays the graph. With `captures` off every call runs it as it is written.
    Graphs of the same `pool` (`torch.cuda.graph_pool_handle`) work in the same memory, one after another.
    """

    def __init__(self, work: Callable[[], None], captures: bool, pool: Any = None) -> None:
        self.work, self.captures, self.pool = work, captures, pool
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the work once."""
        if self.graph is not None:
            self.graph.replay()
            return
        if not self.captures:
            self.work()
            return
        # Elsewhere than on the stream of the capture, kernels of the first run could still be under way.
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.work()
        torch.cuda.current_stream().wait_stream(stream)
        # What the first run used is not what the graph will use: its memory is given back.
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        graph = torch.cuda.CUDAGraph()
        # Other threads go on meanwhile: the loader's pins memory, another watches over NCCL.
        with torch.cuda.graph(graph, pool=self.pool, stream=stream, capture_error_mode="thread_local"):
            self.work()
        self.graph = graph

    def release(self) -> None:
        """Give the graph and its memory back; the next call captures again. Graphs in which ranks sum must go before
        the ranks part: NCCL waits for them."""
        if self.graph is not None:
            self.graph.reset()
            self.graph = None
