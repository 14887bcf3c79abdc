"""The file that a trained model is kept in: container, codecs, export and load.

Read `store.py` first, then `manifest.py`, `container.py` and `codecs.py`; docs/artifact-format.md describes the bytes.
"""

from jepamba.artifact.inspect import inspect
from jepamba.artifact.store import Artifact, estimate_bytes, load_artifact, save_artifact

__all__ = ["Artifact", "estimate_bytes", "inspect", "load_artifact", "save_artifact"]
