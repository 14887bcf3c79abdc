"""English text of the Python installation: the language reference and the docstrings of the standard library."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib
import os
import sys
import sysconfig
import warnings
from pathlib import Path

from jepamba.errors import UserError

_SKIPPED = frozenset(
    {"__pycache__", "_bundled", "dist-packages", "idle_test", "lib-dynload", "site-packages", "test", "tests"}
)


def stdlib_documents() -> list[tuple[str, str]]:
    """Return (name, text) of every document, about 2 MB: the topics of the language reference, then the modules.

    The document of a module joins the docstrings of the module, its classes and its functions. The order is fixed, and
    exact duplicates are dropped. Raises `UserError` if this Python has no such text.
    """
    return list(_documents())


def stdlib_identity() -> str:
    """Return a hash of what determines `stdlib_documents`: the Python version, and path, size and time of each file."""
    state = [sys.version]
    for name, path in _modules():
        status = path.stat()
        state.append(f"{name} {path} {status.st_size} {status.st_mtime_ns}")
    return hashlib.sha256("\n".join(state).encode()).hexdigest()


@functools.cache
def _documents() -> tuple[tuple[str, str], ...]:
    found: list[tuple[str, str]] = []
    seen: set[str] = set()
    candidates = [(f"topic {name}", text) for name, text in sorted(_topics().items())]
    candidates += [(name, _docstrings(path)) for name, path in _modules()]
    for name, text in candidates:
        text = text.replace("\0", "").strip("\n")
        if text and text not in seen:
            seen.add(text)
            found.append((name, text))
    if not found:
        raise UserError("stdlib: this Python has no language reference and no docstrings; set data.train to a path")
    return tuple(found)


def _topics() -> dict[str, str]:
    try:
        return dict(importlib.import_module("pydoc_data.topics").topics)
    except ImportError:
        return {}


def _modules() -> list[tuple[str, Path]]:
    """Return (dotted name, file) of each standard-library module, sorted, without tests and installed packages."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = []
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in _SKIPPED]
        for name in files:
            if name.endswith(".py"):
                path = Path(folder) / name
                parts = path.relative_to(root).with_suffix("").parts
                found.append((".".join(parts[:-1] if parts[-1] == "__init__" else parts), path))
    return sorted(found)


def _docstrings(path: Path) -> str:
    """Join the docstrings of a source file with blank lines. A file that Python cannot parse gives an empty text."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError):
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    texts = [ast.get_docstring(node) for node in _statements(tree) if isinstance(node, documented)]
    return "\n\n".join(text for text in texts if text)


def _statements(tree: ast.AST) -> list[ast.AST]:
    """Return all statement nodes in source order."""
    ordered: list[ast.AST] = []
    stack = [tree]
    while stack:
        node = stack.pop()
        ordered.append(node)
        stack.extend(child for child in reversed(list(ast.iter_child_nodes(node))) if isinstance(child, ast.stmt))
    return ordered
