"""The version of the code that runs."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path

from jepamba import __version__


@cache
def program_version() -> str:
    """The version of the package and the `source_digest` of its files, as in `0.2.0+3f1c…`; `0.2.0+bundle` in a bundle.

    Runs of equal settings and seeds may differ if their programs do.
    """
    file = globals().get("__file__")  # a bundle has none
    return f"{__version__}+{'bundle' if file is None else source_digest(Path(file).parent)}"


def source_digest(folder: Path) -> str:
    """A digest of the names and contents of the Python and C++ files in `folder`: 12 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in (".py", ".cpp", ".h")):
        text = path.read_bytes()
        digest.update(f"{path.relative_to(folder).as_posix()} {len(text)}\n".encode() + text)
    return digest.hexdigest()[:12]
