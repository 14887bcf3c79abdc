"""Files compressed by a model: its bits per byte as the size of a file, and the file back to the byte.

Read `compressor.py` first; then `tokens.py` and `corrections.py` (bytes to tokens, nothing lost), `lanes.py` and
`stream.py` (the model's steps), `coder.py` (the arithmetic coder) and `packed.py` (the file).
"""

from jepamba.compress.compressor import Compressed, Compressor
from jepamba.compress.packed import MAX_BYTES

__all__ = ["MAX_BYTES", "Compressed", "Compressor"]
