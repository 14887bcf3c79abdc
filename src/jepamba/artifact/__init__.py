"""The artifact, the file format of a trained model: container, codecs, save and load.

Read `store.py` first, then `manifest.py`, `container.py` and `codecs.py`; docs/artifact-format.md specifies the bytes.
"""

from jepamba.artifact.inspect import inspect
from jepamba.artifact.store import Artifact, estimate_bytes, load_artifact, save_artifact

__all__ = ["Artifact", "estimate_bytes", "inspect", "load_artifact", "save_artifact"]
