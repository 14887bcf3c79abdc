"""The processes that train one model together: their collectives, and the failure of one of them."""

from jepamba.distributed.collectives import SINGLE_PROCESS, World, local_rank, local_world_size, process_group
from jepamba.distributed.failures import reported_failures, wait_time_limit

__all__ = [
    "SINGLE_PROCESS",
    "World",
    "local_rank",
    "local_world_size",
    "process_group",
    "reported_failures",
    "wait_time_limit",
]
