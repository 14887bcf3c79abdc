"""Collectives of the processes that train one model together.

`torchrun` starts the processes and describes them in the environment. In a single process there is no process group,
and a collective returns its input. Tensors use NCCL on GPUs and gloo on CPUs. Objects use two gloo groups, so that no
GPU waits for them: one with the short time-out of the tensor collectives, and one with a long time-out for waits on
work of rank 0, such as tokenizing or packing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from jepamba.distributed.failures import collective_timeout, rank_zero_timeout
from jepamba.errors import UserError, in_words

BUCKET_VALUES = 1 << 24
"""Values in a flat fp32 bucket (64 MiB) in which many small tensors are summed together."""
Result = TypeVar("Result")


def local_rank() -> int:
    """The index of this process on its machine, from 0. It is also the index of its GPU."""
    return _from_environment("LOCAL_RANK", 0)


def local_world_size() -> int:
    """The number of processes of this run on this machine."""
    return max(1, _from_environment("LOCAL_WORLD_SIZE", 1))


class World:
    """This process's `rank` among `world_size` processes, and the collectives of these processes.

    All ranks must call every method, in the same order.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, short: Any = None, long: Any = None
    ) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._short, self._long = short, long
        """gloo groups with a short and a long time-out; None in a single process."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the rank that writes files and prints."""
        return self.rank == 0

    # Tensors

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous `tensor` by its sum over the ranks, and return it."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_each_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks, computed in a few flat fp32 buckets."""
        if self.world_size == 1:
            return
        # Each bucket is filled while the previous one is being reduced.
        pending = []
        for bucket in _buckets(tensors):
            flat = torch.cat([value.detach().reshape(-1).float() for value in bucket])
            pending.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in pending:
            work.wait()
            pieces = flat.split([value.numel() for value in bucket])
            torch._foreach_copy_(bucket, [piece.view_as(v) for piece, v in zip(pieces, bucket, strict=True)])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The differentiable sum over the ranks. The backward pass sums the ranks' gradients, which is right where the
        loss is the sum of the ranks' losses."""
        return cast(Tensor, _AllReduce.apply(tensor, self)) if self.world_size > 1 else tensor  # type: ignore[no-untyped-call]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """The tensors of all ranks, which have the same shape, stacked: (world_size, *shape)."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        gathered = tensor.new_empty(self.world_size * tensor.numel())
        # PyTorch 2.13 renamed it.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(gathered, tensor.contiguous().view(-1))
        return gathered.view(self.world_size, *tensor.shape)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every tensor with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's named CPU tensors on every rank. The `tensors` of the other ranks are ignored."""
        if self.world_size == 1:
            return dict(tensors)
        specs = [(name, list(value.shape), str(value.dtype).partition(".")[2]) for name, value in tensors.items()]
        received = {}
        for name, shape, dtype in self.broadcast_object(specs):
            value = tensors[name].contiguous() if self.is_rank_zero else torch.empty(shape, dtype=getattr(torch, dtype))
            dist.broadcast(value, 0, group=self._long)
            received[name] = value
        return received

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `RuntimeError` on all ranks if the checksum of a named tensor differs between ranks."""
        if self.world_size == 1:
            return
        checksums = torch.stack([_checksum(value) for value in tensors.values()]).tolist()
        difference = self.first_difference(dict(zip(tensors, checksums, strict=True)))
        if difference is not None:
            raise RuntimeError(f"{difference[1]} is not the same on rank 0 and on rank {difference[0]}")

    # Objects

    def all_gather_object(self, value: Any, *, patient: bool = False) -> list[Any]:
        """The values of all ranks, in the order of the ranks. `patient`: with the long time-out of waits for rank 0."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self._long if patient else self._short)
        return values

    def first_difference(self, values: Mapping[str, Any]) -> tuple[int, str, Any, Any] | None:
        """Compare every rank's named `values` with rank 0's.

        Returns the first rank that differs, the name of the value, its value on that rank, and rank 0's.
        """
        everyone = self.all_gather_object(dict(values))
        for rank, theirs in enumerate(everyone):
            for name, expected in everyone[0].items():
                if theirs.get(name) != expected:
                    return rank, name, theirs.get(name), expected
        return None

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` on every rank. The other ranks wait for rank 0 up to the long time-out."""
        if self.world_size == 1:
            return value
        received = [value]
        dist.broadcast_object_list(received, 0, group=self._long)
        return received[0]

    def on_rank_zero(self, work: Callable[[], Result]) -> Result:
        """Call `work` on rank 0 only, and return its result on all ranks. The other ranks wait up to the long time-out.

        An error is raised unchanged on rank 0, and as a `UserError` with the same message on the other ranks. If rank 0
        was interrupted, that message names rank 0.
        """
        if self.world_size == 1:
            return work()
        if not self.is_rank_zero:
            outcome = self.broadcast_object(None)
            if "error" in outcome:
                raise UserError(outcome["error"])
            return cast(Result, outcome["value"])
        try:
            value = work()
        except BaseException as error:
            message = in_words(error)
            if not isinstance(error, Exception):
                message = f"rank {self.rank} ended: {message}"
            # If the other ranks are gone, the error of this rank still has to be raised.
            with contextlib.suppress(RuntimeError):
                self.broadcast_object({"error": message})
            raise
        self.broadcast_object({"value": value})
        return value

    def local_rank_zero_first(self, work: Callable[[], Result]) -> Result:
        """Call `work` on every rank, and return this rank's result. The first rank of each machine calls it before the
        others, which then find on its disk the files that it wrote, such as a cache.

        An error is raised unchanged on its rank, and as a `UserError` that names this rank on the others.
        """
        if self.world_size == 1:
            return work()
        results: list[Result] = []
        for first in (True, False):
            problem: Exception | None = None
            if (self.local_rank == 0) == first:
                try:
                    results.append(work())
                except Exception as error:
                    problem = error
            problems = self.all_gather_object(None if problem is None else in_words(problem), patient=True)
            if problem is not None:
                raise problem
            for rank, message in enumerate(problems):
                if message is not None:
                    raise UserError(f"rank {rank}: {message}")
        return results[0]


SINGLE_PROCESS = World()
"""The world of one process."""


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """Join the processes that `torchrun` started with this one. Yields `SINGLE_PROCESS` without `torchrun`.

    Raises:
        UserError: if torchrun's environment variables are invalid, or the processes cannot connect to each other.
    """
    size = _from_environment("WORLD_SIZE", 1)
    if size < 1:
        raise UserError("WORLD_SIZE = 0 in the environment: torchrun sets it to at least 1; unset it, or use torchrun")
    if size == 1:
        yield SINGLE_PROCESS
        return
    rank, local = _from_environment("RANK", None), _from_environment("LOCAL_RANK", None)
    if not 0 <= rank < size:
        raise UserError(
            f"RANK = {rank} and WORLD_SIZE = {size} in the environment: a rank is at least 0 and below the world size"
        )
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    try:
        dist.init_process_group(backend, timeout=collective_timeout())
        short = dist.new_group(backend="gloo", timeout=collective_timeout())
        long = dist.new_group(backend="gloo", timeout=rank_zero_timeout())
    except (RuntimeError, ValueError) as error:
        where = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"the {size} processes cannot connect to each other at {where} (MASTER_ADDR, MASTER_PORT): {reason}; "
            "start them with torchrun, or unset WORLD_SIZE for one process"
        ) from error
    yield World(rank, size, local, short, long)
    # Not after an error: destroying the group would wait for ranks that may be gone. `jepamba.__main__` then ends the
    # process without it.
    dist.destroy_process_group()


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, world: World) -> Tensor:
        ctx.world = world
        return world.all_reduce_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.world.all_reduce_(grads[0].clone(memory_format=torch.contiguous_format)), None


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(value.numel() for value in bucket) + tensor.numel() > BUCKET_VALUES:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _checksum(tensor: Tensor) -> Tensor:
    """The sum of the values' bits, read as integers."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.detach().contiguous().view(integers).sum(dtype=torch.int64)


def _from_environment(name: str, default: int | None) -> int:
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal():
        raise UserError(
            f"{name} = {text!r} in the environment: torchrun sets it to a number; unset it, or use torchrun"
        )
    return int(text)
