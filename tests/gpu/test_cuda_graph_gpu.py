"""CUDA graphs of `ops.cuda_graph` beside other graphs of the process."""

import gc

import torch

from jepamba.ops.cuda_graph import CUDAGraph
from needs_gpus import needs_gpus

pytestmark = needs_gpus()


class Cycle:
    """Keeps `value` until the garbage collector runs."""

    def __init__(self, value: object) -> None:
        self.value, self.itself = value, self


def test_a_capture_survives_the_garbage_of_an_earlier_graph() -> None:
    tensor = torch.zeros(4, device="cuda")
    earlier = [CUDAGraph(lambda: torch.add(tensor, 1, out=tensor), True)]
    earlier[0]()

    def work() -> None:
        tensor.add_(1)
        if earlier:  # in the run before the capture
            Cycle(earlier.pop())
        else:  # in the capture: enough new objects for a collection
            _ = [[] for _ in range(100_000)]

    threshold = gc.get_threshold()
    gc.set_threshold(5_000)
    try:
        graph = CUDAGraph(work, True)
        graph()
        assert gc.isenabled()
        graph()
    finally:
        gc.set_threshold(*threshold)
    assert tensor.tolist() == [3.0] * 4
