"""The version of the code that runs."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from jepamba import __version__


@cache
def program_version() -> str:
    """The version of the package and a digest of its source files, as in `0.2.0+3f1c…`: 12 hexadecimal digits.

    Runs of equal settings and seeds may differ if their programs do.
    """
    folder = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(text)}\n".encode() + text)
    return f"{__version__}+{digest.hexdigest()[:12]}"
