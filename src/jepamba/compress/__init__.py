"""Lossless compression of files with the probabilities of a model.

Read `compressor.py` first; then `tokens.py` and `corrections.py` (bytes to tokens and back), `lanes.py`,
`token_coding.py`, `steps.py` and `compiled.py` (the model's steps), `correction_coding.py`, `range_coder.py` (the
entropy coder) and `file_format.py`.
"""

from jepamba.compress.compressor import Compressed, Compressor, find_model
from jepamba.compress.file_format import MAX_BYTES, MAX_FILE_BYTES, OVERHEAD

__all__ = ["MAX_BYTES", "MAX_FILE_BYTES", "OVERHEAD", "Compressed", "Compressor", "find_model"]
