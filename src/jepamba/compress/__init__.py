"""Lossless compression of files with the probabilities of a model.

Read `compressor.py` first; then `tokens.py` and `corrections.py` (bytes to tokens and back), `lanes.py` and
`stream.py` (the model's steps), `coder.py` (the entropy coder) and `packed.py` (the file format).
"""

from jepamba.compress.compressor import Compressed, Compressor
from jepamba.compress.packed import MAX_BYTES

__all__ = ["MAX_BYTES", "Compressed", "Compressor"]
