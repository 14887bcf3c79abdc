"""Data: shards, token streams, the way from text to them, and the loader of windows."""

from jepamba.data.batch_layout import BatchLayout
from jepamba.data.build import Corpus, build, corpus, is_shards, load_tokens
from jepamba.data.folder import TokenFolder, open_folder
from jepamba.data.loader import Batch, Loader
from jepamba.data.prefetcher import Prefetcher
from jepamba.data.shards import open_shard, write_shard
from jepamba.data.tokens import Tokens

__all__ = [
    "Batch",
    "BatchLayout",
    "Corpus",
    "Loader",
    "Prefetcher",
    "TokenFolder",
    "Tokens",
    "build",
    "corpus",
    "is_shards",
    "load_tokens",
    "open_folder",
    "open_shard",
    "write_shard",
]
