"""Tokens to coded sections and back: every batch of lanes is a section of its own, and has a thread of its own.

Legend: N tokens, W lanes of a batch, T steps.
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

from jepamba.artifact import Artifact
from jepamba.compress.coder import SymbolCoder, SymbolDecoder, SymbolEncoder
from jepamba.compress.lanes import LaneBatch, LaneLayout, levels, nats, probe, weights
from jepamba.compress.tokens import Ids
from jepamba.errors import UserError
from jepamba.progress import Report

Done = TypeVar("Done")


class _StoppedError(Exception):
    """Another batch has failed, or the user has had enough."""


def write_stream(
    artifact: Artifact, ids: Ids, cut: LaneLayout, progress: Report | None = None
) -> tuple[list[bytes], bytes, float]:
    """(a section for each batch of `cut`, the probe, nats that the model itself says the tokens (N,) cost)."""

    def write(lanes: range, tick: Callable[[], None]) -> tuple[bytes, float]:
        ids_WT = np.zeros((len(lanes), cut.length(lanes[0])), dtype=np.int32)
        for row, lane in zip(ids_WT, lanes, strict=True):
            row[: cut.length(lane)] = ids[cut.start(lane) : cut.start(lane + 1)]
        writer = SymbolEncoder()
        cost = _code(writer, artifact, cut, lanes, ids_WT, tick)
        return writer.finish(cut.start(lanes[-1] + 1) - cut.start(lanes[0])), cost

    with _one_thread() as threads:
        seen = probe(artifact, max(len(lanes) for lanes in cut.batches))
        done = _in_threads(cut, threads, write, progress)
    return [section for section, _ in done], seen, sum(cost for _, cost in done)


def read_stream(
    artifact: Artifact, sections: Sequence[bytes], cut: LaneLayout, expected: bytes, progress: Report | None = None
) -> Ids:
    """The tokens (N,) in `sections`, one for each batch of `cut`.

    Raises `UserError` if this machine's probe is not the `expected` one, or a section holds what no tokenizer writes.
    """

    def read(lanes: range, tick: Callable[[], None]) -> list[NDArray[np.int32]]:
        ids_WT = np.zeros((len(lanes), cut.length(lanes[0])), dtype=np.int32)
        _code(SymbolDecoder(sections[cut.batches.index(lanes)]), artifact, cut, lanes, ids_WT, tick)
        return [row[: cut.length(lane)] for row, lane in zip(ids_WT, lanes, strict=True)]

    with _one_thread() as threads:
        if probe(artifact, max(len(lanes) for lanes in cut.batches)) != expected:
            raise UserError(
                "this machine computes other probabilities than the one that compressed it (another processor, PyTorch "
                "or number library): decompress it where it was compressed"
            )
        done = _in_threads(cut, threads, read, progress)
    return np.concatenate([row for rows in done for row in rows]).astype(np.uint16)


def _code(
    coder: SymbolCoder,
    artifact: Artifact,
    cut: LaneLayout,
    lanes: range,
    ids_WT: NDArray[np.int32],
    tick: Callable[[], None],
) -> float:
    """Both directions: writes `ids_WT`, or fills it; the cost in nats, of writing only."""
    cost, limit = 0.0, artifact.tokenizer.vocab_size
    with torch.inference_mode():
        batch = LaneBatch(artifact, len(lanes))
        read_W = batch.first_W
        for step in range(ids_WT.shape[1]):
            logits_WV = batch.step(read_W)
            # The longer lanes come first: in the last step some have ended.
            live = sum(1 for lane in lanes if step < cut.length(lane))
            found = coder.rows(weights(levels(logits_WV[:live])), ids_WT[:live, step])
            if int(found.max()) >= limit:
                raise UserError("its coded data are damaged")
            ids_WT[:live, step] = found
            if coder.writing:
                cost += nats(logits_WV[:live], found.astype(np.int64))
            read_W = ids_WT[:, step].astype(np.int64)
            tick()
    return cost


@contextmanager
def _one_thread() -> Iterator[int]:
    """Every product on one thread and in full precision: sums must run in one order. Gives the threads there were."""
    threads, precision = torch.get_num_threads(), torch.get_float32_matmul_precision()
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode():
            yield threads
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(precision)


def _in_threads(
    cut: LaneLayout, threads: int, work: Callable[[range, Callable[[], None]], Done], progress: Report | None
) -> list[Done]:
    """`work` on each batch of lanes, several at once; it calls `tick` after each step."""
    stop, lock = Event(), Lock()
    total, done = sum(cut.length(lanes[0]) for lanes in cut.batches), 0

    def tick() -> None:
        nonlocal done
        if stop.is_set():
            raise _StoppedError
        with lock:
            done += 1
            if progress is not None:
                progress(done, total)

    # A thread of the pool has its own count of threads in PyTorch's number libraries.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        waiting = [pool.submit(work, lanes, tick) for lanes in cut.batches]
        try:
            ended = wait(waiting, return_when=FIRST_EXCEPTION).done
            failed = [error for future in ended if (error := future.exception()) is not None]
        finally:
            # After an error, or when the user interrupts, the other batches need not go on.
            stop.set()
        if failed:
            raise failed[0]
        return [future.result() for future in waiting]
