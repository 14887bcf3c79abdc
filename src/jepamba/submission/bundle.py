"""Bundle a function of a package, and everything that it needs, into one readable Python file.

The file has a section for each module. Its head runs the function and exits, so that Python does not execute the
sections. When a module is imported, its section is compiled with the line numbers of the file, so that tracebacks,
`inspect` and Triton, which reads the source of its kernels, work as in the package.

It contains each top-level definition that the function needs, and each top-level statement that is not a definition.
Docstrings are omitted, and so are imports from this package or jaxtyping for annotations, which nothing evaluates.
"""

from __future__ import annotations

import ast
import base64
import lzma
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeGuard

REQUIRED = frozenset({"torch", "numpy", "sentencepiece"})
"""Third-party packages that a bundle always needs. Others may be missing, such as a codec that no block uses."""
MARK = "# ==== "
"""Start of a section, before the name of the module."""

_HEAD = '''\
{comment}
from __future__ import annotations

import __future__
import importlib.abc
import importlib.machinery
import linecache
import sys
from pathlib import Path


class Missing:
    """Placeholder for a missing package, which this run may not need."""

    def __init__(self, name):
        self.name = name

    def __getattr__(self, name):
        return self

    def __call__(self, *args, **kwargs):
        raise SystemExit(f"this script needs the package {{self.name}}; install it")


class Sections(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports the package {root} from sections of text; a package without a section is empty."""

    def __init__(self, file, text):
        self.file, self.sections, name = file, {{}}, None
        lines = text.splitlines(keepends=True)
        linecache.cache[file] = len(text), None, lines, file
        for number, line in enumerate(lines, 1):
            if line.startswith("{mark}"):
                name = line.removeprefix("{mark}").strip()
                self.sections[name] = "\\n" * number
            elif name:
                self.sections[name] += line

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "{root}":
            return None
        package = any(other.startswith(name + ".") for other in self.sections)
        if not package and name not in self.sections:
            raise ModuleNotFoundError(name)
        return importlib.machinery.ModuleSpec(name, self, origin=self.file, is_package=package)

    def exec_module(self, module):
        flags = __future__.annotations.compiler_flag
        code = compile(self.sections.get(module.__name__, ""), self.file, "exec", flags, dont_inherit=True)
        module.Missing = Missing
        exec(code, module.__dict__)


if __name__ == "__main__":
{text}
    sys.meta_path.insert(0, Sections(file, text))
    from {module} import {function}

    sys.exit({function}({arguments}))
'''
_READABLE = """    file = __file__\n    text = Path(file).read_text(encoding="utf-8")"""
_PACKED = """\
    import base64
    import lzma

    # The sections, readable: python -c 'import base64, lzma, re; print(lzma.decompress(base64.b85decode(
    #   re.search(r"PACKED = r\\"(.*)\\"", open("train_gpt.py").read())[1])).decode())'
    file = __file__ + ", unpacked"
    PACKED = r"{packed}"
    text = lzma.decompress(base64.b85decode(PACKED)).decode("utf-8")\
"""


def bundle(module: str, function: str, arguments: str = "", comment: str = "", packed: bool = False) -> str:
    """Return the source of a program that executes `sys.exit(function(arguments))`.

    Arguments:
        module: The module that defines `function`.
        arguments: The arguments as Python source.
        comment: Lines that start with `#`, for the top of the file.
        packed: Compress the sections to about a third of their bytes. They are then not directly readable.
    """
    root, sections = module.partition(".")[0], _sections(module, function)
    text = _READABLE
    if packed:
        # The alphabet of base 85 has neither quotes nor backslashes.
        data = lzma.compress(sections.encode(), check=lzma.CHECK_CRC32, preset=9 | lzma.PRESET_EXTREME)
        text = _PACKED.format(packed=base64.b85encode(data).decode("ascii"))
    names = {"module": module, "function": function, "arguments": arguments, "root": root, "mark": MARK}
    program = _HEAD.format(comment=comment, text=text, **names) + ("" if packed else f"\n\n{sections}")
    ast.parse(program)
    return program


@cache
def _sections(module: str, function: str) -> str:
    """Return the modules that `function` needs, each with what is needed of it, under its mark."""
    root = module.partition(".")[0]
    found = _reached(module, function, root)
    return "\n\n".join(f"{MARK}{name}\n{_section(_module(name), found[name], root)}" for name in sorted(found))


@dataclass
class _Module:
    """The source of a module, and its top-level statements by the names that they bind."""

    lines: list[str]
    body: list[ast.stmt]
    binds: dict[str, list[ast.stmt]] = field(default_factory=lambda: defaultdict(list))
    runs: list[ast.stmt] = field(default_factory=list)
    """Statements that are not definitions. A bundle contains all of them."""


@cache
def _module(name: str) -> _Module:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(name)
    source = Path(spec.origin).read_text(encoding="utf-8")
    body = [statement for statement in ast.parse(source).body if not _is_for_types(statement)]
    module = _Module(source.splitlines(), body)
    for statement in module.body:
        bound = list(_bound(statement))
        for each in bound:
            module.binds[each].append(statement)
        if not bound and not _is_docstring(statement):
            module.runs.append(statement)
    return module


def _bound(statement: ast.stmt) -> Iterator[str]:
    """Yield the names that a definition, an assignment or an import binds."""
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield statement.name
    elif isinstance(statement, ast.Import | ast.ImportFrom):
        yield from map(_bound_by, statement.names)
    elif isinstance(statement, ast.Assign | ast.AnnAssign):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        yield from (node.id for target in targets for node in ast.walk(target) if isinstance(node, ast.Name))


def _bound_by(alias: ast.alias) -> str:
    """Return the name that an alias of an import binds."""
    return alias.asname or alias.name.partition(".")[0]


def _reached(module: str, function: str, root: str) -> dict[str, set[str]]:
    """Return the names that `function` needs, directly or indirectly, by module."""
    found: dict[str, set[str]] = {}
    waiting = [_origin(module, function)]
    while waiting:
        where, name = waiting.pop()
        here = _module(where)
        new = [] if where in found else here.runs
        known = found.setdefault(where, set())
        # An imported module: any of its names may be used.
        added = ({name} if name else here.binds.keys()) - known
        known |= added
        for statement in (*new, *(statement for each in added for statement in here.binds[each])):
            if _own(statement, root):
                continue  # resolved where it is used
            for used, only_annotated in _used(statement).items():
                binders = here.binds.get(used, [])
                imported = [item for item in binders if isinstance(item, ast.ImportFrom)]
                if not binders or (only_annotated and any(_package(item) in (root, "jaxtyping") for item in imported)):
                    continue
                waiting += [_origin(item.module or "", _aliased(item, used)) for item in imported if _own(item, root)]
                waiting.append((where, used))
            for node in ast.walk(statement):
                if _own(node, root):
                    waiting += [_origin(node.module or "", alias.name) for alias in node.names]
    return found


def _package(statement: ast.Import | ast.ImportFrom) -> str:
    name = statement.module if isinstance(statement, ast.ImportFrom) else statement.names[0].name
    return (name or "").partition(".")[0]


def _own(node: ast.AST, root: str) -> TypeGuard[ast.ImportFrom]:
    """Whether `node` imports from the package `root`."""
    return isinstance(node, ast.ImportFrom) and _package(node) == root


def _aliased(statement: ast.ImportFrom, bound: str) -> str:
    return next(alias.name for alias in statement.names if _bound_by(alias) == bound)


@cache
def _origin(module: str, name: str) -> tuple[str, str]:
    """Return the (module, name) that defines `name` of `module`; (submodule, "") for a submodule."""
    here = _module(module)
    for statement in here.binds.get(name, []):
        if _own(statement, module.partition(".")[0]):
            return _origin(statement.module or "", _aliased(statement, name))
    if name not in here.binds:
        return f"{module}.{name}", ""
    return module, name


def _used(statement: ast.stmt) -> dict[str, bool]:
    """Return the names in `statement`, with whether only annotations use them."""
    nodes = list(ast.walk(statement))
    annotations = [getattr(node, field, None) for node in nodes for field in ("annotation", "returns")]
    annotated = {id(node) for tree in annotations if isinstance(tree, ast.AST) for node in ast.walk(tree)}
    names: dict[str, bool] = {}
    for node in nodes:
        if isinstance(node, ast.Name):
            names[node.id] = names.get(node.id, True) and id(node) in annotated
    return names


def _is_for_types(statement: ast.stmt) -> bool:
    """Whether it is `if TYPE_CHECKING:`, which nothing executes."""
    return isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING"


def _is_docstring(statement: ast.stmt) -> bool:
    value = getattr(statement, "value", None)
    return isinstance(statement, ast.Expr) and isinstance(value, ast.Constant) and isinstance(value.value, str)


def _section(module: _Module, names: set[str], root: str) -> str:
    """Return the source of the needed statements of `module`, in order."""
    imports, code = [], []
    for statement in module.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            imports += _imports(statement, names, root)
        elif statement in module.runs or names & set(_bound(statement)):
            code.append(_source(statement, module.lines, root))
    return "\n".join(imports) + ("\n\n" if imports else "") + "\n\n".join(code) + "\n"


def _imports(statement: ast.Import | ast.ImportFrom, names: set[str], root: str) -> list[str]:
    """Return the needed imports of `statement`, each from the module that defines the name."""
    wanted = [alias for alias in statement.names if _bound_by(alias) in names]
    if _own(statement, root):
        return [_import_of(statement.module or "", alias) for alias in wanted]
    if not wanted or _package(statement) == "__future__":
        return []
    kept = ast.Import(wanted) if isinstance(statement, ast.Import) else ast.ImportFrom(statement.module, wanted, 0)
    line = ast.unparse(kept)
    package = _package(kept)
    if package in REQUIRED or package in sys.stdlib_module_names:
        return [line]
    bound = " = ".join(map(_bound_by, wanted))
    return ["try:", f"    {line}", "except ImportError:", f'    {bound} = Missing("{package}")']


def _import_of(module: str, alias: ast.alias) -> str:
    where, name = _origin(module, alias.name)
    bound = alias.asname or alias.name
    if not name:
        where, _, name = where.rpartition(".")
    return f"from {where} import {name}" + (f" as {bound}" if bound != name else "")


def _source(statement: ast.stmt, lines: list[str], root: str) -> str:
    """Return the source of a statement with the comment above it, without docstrings, with resolved imports."""
    first = min(node.lineno for node in (statement, *getattr(statement, "decorator_list", []))) - 1
    while first > 0 and lines[first - 1].startswith("#"):
        first -= 1
    changed: dict[int, str | None] = {}
    for node in ast.walk(statement):
        body = getattr(node, "body", [])
        for inner in body if isinstance(body, list) else []:
            if _is_docstring(inner):
                new = ["pass"] if len(body) == 1 else []
            elif _own(inner, root):
                new = [_import_of(inner.module or "", alias) for alias in inner.names]
            else:
                continue
            changed |= dict.fromkeys(range(inner.lineno - 1, inner.end_lineno or inner.lineno))
            if new:
                changed[inner.lineno - 1] = "\n".join(" " * inner.col_offset + line for line in new)
    kept = (changed.get(number, lines[number]) for number in range(first, statement.end_lineno or first + 1))
    text = "\n".join(line for line in kept if line is not None)
    # Remove blank lines at the start of a block, and repeated ones.
    return re.sub(r"\n\s*\n", "\n\n", re.sub(r":\n\s*\n", ":\n", text))
