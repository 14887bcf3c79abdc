"""Encode tokens into sections and decode them. Each batch of lanes has its own section and its own thread.

Legend: N tokens, W lanes of a batch, T steps, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from threading import Event, Lock
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from jepamba.compress.lanes import LaneLayout
from jepamba.compress.steps import BatchCoder, Steps
from jepamba.compress.tokens import Ids
from jepamba.errors import UserError
from jepamba.progress import Report

Result = TypeVar("Result")


class _StoppedError(Exception):
    """Another batch failed, or the user interrupted."""


def encode_tokens(
    steps: Steps, ids: Ids, layout: LaneLayout, progress: Report | None = None
) -> tuple[list[bytes], bytes, float]:
    """Encode the tokens (N,). Returns a section per batch of `layout`, the probe, and the model's cost in nats."""

    def write(lanes: range, tick: Callable[[], None]) -> tuple[bytes, float]:
        ids_WT = np.zeros((len(lanes), layout.length(lanes[0])), dtype=np.int32)
        for row, lane in zip(ids_WT, lanes, strict=True):
            row[: layout.length(lane)] = ids[layout.start(lane) : layout.start(lane + 1)]
        tokens = layout.start(lanes[-1] + 1) - layout.start(lanes[0])
        coder = steps.start(len(lanes), tokens)
        _code(coder, steps.artifact.tokenizer.bos_id, layout, lanes, ids_WT, tick)
        return coder.finish(tokens), coder.nats

    with _one_thread() as threads:
        machine_probe = steps.probe(max(len(lanes) for lanes in layout.batches))
        done = _in_threads(layout, threads, write, progress)
    return [section for section, _ in done], machine_probe, sum(cost for _, cost in done)


def decode_tokens(
    steps: Steps, sections: Sequence[bytes], layout: LaneLayout, expected: bytes, progress: Report | None = None
) -> Ids:
    """Decode the tokens (N,) from `sections`, one per batch of `layout`.

    Raises `UserError` if this machine's probe differs from `expected`, or a section is damaged.
    """

    def read(lanes: range, tick: Callable[[], None]) -> list[NDArray[np.int32]]:
        ids_WT = np.zeros((len(lanes), layout.length(lanes[0])), dtype=np.int32)
        coder = steps.start(len(lanes), sections[layout.batches.index(lanes)])
        _code(coder, steps.artifact.tokenizer.bos_id, layout, lanes, ids_WT, tick)
        return [row[: layout.length(lane)] for row, lane in zip(ids_WT, lanes, strict=True)]

    with _one_thread() as threads:
        if steps.probe(max(len(lanes) for lanes in layout.batches)) != expected:
            raise UserError(
                "this machine does not compute the same probabilities as the one that compressed it (the processor, "
                "the C++ compiler, PyTorch or a numerical library differs): decompress it where it was compressed"
            )
        done = _in_threads(layout, threads, read, progress)
    return np.concatenate([row for rows in done for row in rows]).astype(np.uint16)


def _code(
    coder: BatchCoder,
    bos_id: int,
    layout: LaneLayout,
    lanes: range,
    ids_WT: NDArray[np.int32],
    tick: Callable[[], None],
) -> None:
    """Encode `ids_WT`, or decode into it."""
    inputs_W = np.full(len(lanes), bos_id, dtype=np.int32)
    with torch.inference_mode():
        for step in range(ids_WT.shape[1]):
            # Longer lanes come first. In the last step, the shorter ones have ended.
            active = sum(1 for lane in lanes if step < layout.length(lane))
            ids_WT[:active, step] = coder.code(inputs_W, ids_WT[:active, step])
            inputs_W = ids_WT[:, step]
            tick()


@contextmanager
def _one_thread() -> Iterator[int]:
    """Use one thread and full fp32 precision, for a fixed order of sums. Yields the previous number of threads."""
    threads, matmul = torch.get_num_threads(), torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    precision = matmul.fp32_precision
    torch.set_num_threads(1)
    matmul.fp32_precision = "ieee"
    try:
        with torch.inference_mode():
            yield threads
    finally:
        torch.set_num_threads(threads)
        matmul.fp32_precision = precision


def _in_threads(
    layout: LaneLayout, threads: int, work: Callable[[range, Callable[[], None]], Result], progress: Report | None
) -> list[Result]:
    """Run `work` on each batch of lanes in a thread pool. `work` calls its argument `tick` after each step."""
    stop, lock = Event(), Lock()
    total, done = sum(layout.length(lanes[0]) for lanes in layout.batches), 0

    def tick() -> None:
        nonlocal done
        if stop.is_set():
            raise _StoppedError
        with lock:
            done += 1
            if progress is not None:
                progress(done, total)

    # The number of threads in PyTorch's numerical libraries is set per thread.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(work, lanes, tick) for lanes in layout.batches]
        try:
            ended = wait(futures, return_when=FIRST_EXCEPTION).done
            failed = [error for future in ended if (error := future.exception()) is not None]
        finally:
            # After an error or an interrupt, stop the other batches.
            stop.set()
        if failed:
            raise failed[0]
        return [future.result() for future in futures]
