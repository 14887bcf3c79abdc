"""Collectives of the processes that train one model together.

`torchrun` starts the processes and describes them in the environment. In a single process there is no process group
and every method does nothing. Tensors travel over NCCL on GPUs and over gloo on CPUs. Objects travel over two gloo
groups, so that no GPU waits for them: one with the short time-out of the tensor collectives, and one with a long
time-out for waits on work of rank 0, such as tokenizing or packing.
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
"""Values of a flat fp32 bucket in which many small tensors are summed: 64 MiB."""
Result = TypeVar("Result")


def local_rank() -> int:
    """Which process of this machine this is, from 0; it takes the GPU of that number."""
    return _from_environment("LOCAL_RANK", 0)


class World:
    """This process among those that train together: `rank` of `size`, and `local` on its machine.

    Every method that returns or moves something is to be called by all ranks, in the same order.
    """

    def __init__(
        self, rank: int = 0, world_size: int = 1, local_rank: int = 0, short: Any = None, long: Any = None
    ) -> None:
        self.rank, self.world_size, self.local_rank = rank, world_size, local_rank
        self._short, self._long = short, long
        """gloo groups with the time-outs of collectives and of waits for rank 0; None in a single process."""

    @property
    def is_rank_zero(self) -> bool:
        """Whether this is the rank that writes files and speaks."""
        return self.rank == 0

    # Tensors

    def all_reduce_(self, tensor: Tensor) -> Tensor:
        """Replace a contiguous `tensor` by its sum over the ranks; the same tensor."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def all_reduce_each_(self, tensors: Sequence[Tensor]) -> None:
        """Replace every tensor by its sum over the ranks, in fp32, a few flat buckets in all."""
        if self.world_size == 1:
            return
        # The next bucket is filled while the one before travels.
        travelling = []
        for bucket in _buckets(tensors):
            flat = torch.cat([value.detach().reshape(-1).float() for value in bucket])
            travelling.append((bucket, flat, dist.all_reduce(flat, async_op=True)))
        for bucket, flat, work in travelling:
            work.wait()
            parts = flat.split([value.numel() for value in bucket])
            torch._foreach_copy_(bucket, [part.view_as(value) for part, value in zip(parts, bucket, strict=True)])

    def all_reduce(self, tensor: Tensor) -> Tensor:
        """The sum over the ranks, differentiable: where each rank adds its own part of the loss, the gradient of what
        went into the sum is the sum of all ranks' gradients by it."""
        return cast(Tensor, _Summed.apply(tensor, self)) if self.world_size > 1 else tensor  # type: ignore[no-untyped-call]

    def all_gather(self, tensor: Tensor) -> Tensor:
        """Every rank's `tensor`, which has the same shape on all of them, stacked: (size, *shape)."""
        if self.world_size == 1:
            return tensor.unsqueeze(0)
        everyone = tensor.new_empty(self.world_size * tensor.numel())
        # Under its new name since PyTorch 2.13.
        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
        gather(everyone, tensor.contiguous().view(-1))
        return everyone.view(self.world_size, *tensor.shape)

    def broadcast_(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite every tensor with rank 0's."""
        if self.world_size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def broadcast_tensors(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Rank 0's named CPU tensors, on every rank; what the others give is passed over."""
        if self.world_size == 1:
            return dict(tensors)
        kinds = [(name, list(value.shape), str(value.dtype).partition(".")[2]) for name, value in tensors.items()]
        found = {}
        for name, shape, kind in self.broadcast_object(kinds):
            value = tensors[name].contiguous() if self.is_rank_zero else torch.empty(shape, dtype=getattr(torch, kind))
            dist.broadcast(value, 0, group=self._long)
            found[name] = value
        return found

    def check_equal(self, tensors: Mapping[str, Tensor]) -> None:
        """Raise `RuntimeError` if a named tensor is not the same, bit for bit, on all ranks (by a checksum)."""
        if self.world_size == 1:
            return
        everyone = self.all_gather_object(torch.stack([_checksum(value) for value in tensors.values()]).tolist())
        for rank, sums in enumerate(everyone):
            for name, here, there in zip(tensors, everyone[0], sums, strict=True):
                if here != there:
                    raise RuntimeError(f"{name} is not the same on rank 0 and on rank {rank}")

    # Objects

    def all_gather_object(self, value: Any, group: Any = None) -> list[Any]:
        """Every rank's `value`, by rank. Over the group with the short time-out unless another `group` is given."""
        if self.world_size == 1:
            return [value]
        found: list[Any] = [None] * self.world_size
        dist.all_gather_object(found, value, group=group or self._short)
        return found

    def broadcast_object(self, value: Any) -> Any:
        """Rank 0's `value` on every rank. The others wait for rank 0 as long as `RANK_ZERO_TIMEOUT`."""
        if self.world_size == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, 0, group=self._long)
        return found[0]

    def on_rank_zero(self, work: Callable[[], Result]) -> Result:
        """What `work()` gives on rank 0, where alone it is done. The others wait, however long it takes.

        What goes wrong is raised on rank 0 as it is, and on the others as a `UserError` with the same message; with
        rank 0's number if it was told to end.
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
            said = in_words(error)
            # If the others have gone already, what happened here is still what is to be told.
            with contextlib.suppress(RuntimeError):
                self.broadcast_object(
                    {"error": said if isinstance(error, Exception) else f"rank {self.rank} ended: {said}"}
                )
            raise
        self.broadcast_object({"value": value})
        return value

    def local_rank_zero_first(self, work: Callable[[], Result]) -> Result:
        """`work()` of this rank; the first rank of each machine goes first, and the others find on its disk what it
        left there. What goes wrong on one rank is raised there, and as a `UserError` that names it on the others."""
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
            problems = self.all_gather_object(None if problem is None else in_words(problem), self._long)
            if problem is not None:
                raise problem
            for rank, message in enumerate(problems):
                if message is not None:
                    raise UserError(f"rank {rank}: {message}")
        return results[0]


SINGLE_PROCESS = World()
"""One process."""


@contextlib.contextmanager
def process_group() -> Iterator[World]:
    """The ranks that `torchrun` started with this one; `SINGLE_PROCESS` without `torchrun`.

    Raises `UserError` for an environment that is not torchrun's, and where the processes do not find each other.
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
            f"RANK = {rank} and WORLD_SIZE = {size} in the environment: ranks count from 0 to below the size"
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
            f"the {size} processes do not find each other at {where} (MASTER_ADDR, MASTER_PORT): {reason}; "
            "start them with torchrun, or unset WORLD_SIZE for one process"
        ) from error
    yield World(rank, size, local, short, long)
    # Not after an error: the others may have gone, and to part from them would wait for them. The process then ends
    # without (`jepamba.__main__`).
    dist.destroy_process_group()


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, ranks: World) -> Tensor:
        ctx.ranks = ranks
        return ranks.all_reduce_(tensor.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return ctx.ranks.all_reduce_(grads[0].clone(memory_format=torch.contiguous_format)), None


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
