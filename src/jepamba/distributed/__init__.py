"""The processes that train one model together: their collectives."""

from jepamba.distributed.collectives import SINGLE_PROCESS, World, local_rank, process_group

__all__ = ["SINGLE_PROCESS", "World", "local_rank", "process_group"]
