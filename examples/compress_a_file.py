"""Compress a file, restore it, and compare with other compressors.

python examples/compress_a_file.py README.md
"""

import bz2
import sys
from pathlib import Path

import brotli

from jepamba.compress import Compressor

path = Path(sys.argv[1] if len(sys.argv) > 1 else "README.md")
if not path.is_file():
    sys.exit(f"{path}: no such file; give the path of a file")
data = path.read_bytes()
compressor = Compressor.open()  # the small model in the package; Compressor.open("runs/mine") is that of a run

packed = compressor.compress(data)
assert compressor.decompress(packed.content) == data

print(f"{'original':<10}{len(data):>10,} bytes")
for name, content in (("jepamba", packed.content), ("brotli", brotli.compress(data)), ("bzip2", bz2.compress(data))):
    print(f"{name:<10}{len(content):>10,} bytes, {8 * len(content) / len(data):.3f} bits per byte")
# Whoever restores the file needs the model too, which is not counted.
