"""The bundler on a small package: what is reached goes in, the rest does not, and lines keep their numbers."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from jepamba.submission.bundle import _module, _origin, _sections, bundle

PACKAGE = {
    "__init__.py": '"""A package."""\n\nfrom smallpkg.deep.inner import helper\n\n__all__ = ["helper"]\n',
    "main.py": '''\
"""The entry."""

from __future__ import annotations

from typing import Any

from smallpkg import helper as assist
from smallpkg.deep import table
from smallpkg.never import Unused

LIMIT = 3  # kept: it is used
OTHER = 4


def start(word: str) -> int:
    """Say it."""
    # a comment that stays
    print(assist(word), table.LOOK["up"], Kept().value(), LIMIT)
    from smallpkg.late import later

    return later()


class Kept:
    """Has a docstring alone in a method."""

    size: Any = 1
    """Documented."""

    def nothing(self) -> None:
        """Only this."""

    def value(self, other: Unused | None = None) -> int:
        return self.size


def unused() -> Any:
    return OTHER
''',
    "never.py": 'raise RuntimeError("imported")\n\n\nclass Unused:\n    pass\n',
    "late.py": """\
import nowhere_to_be_found as maybe

COUNT = 0


def later():
    global COUNT
    COUNT += 1
    if COUNT > 5:
        maybe.run()
    return COUNT - 1


def fail():
    raise ValueError("no")
""",
    "deep/__init__.py": "",
    "deep/inner.py": """\
from smallpkg.deep.registry import REGISTER, register


def helper(word):
    return REGISTER["shout"](word)


register("shout", str.upper)
""",
    "deep/registry.py": "REGISTER = {}\n\n\ndef register(name, what):\n    REGISTER[name] = what\n",
    "deep/table.py": 'LOOK = {"up": "there"}\n',
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, text in PACKAGE.items():
        (tmp_path / "smallpkg" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "smallpkg" / name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    forget()
    yield tmp_path
    forget()


def forget() -> None:
    """The package of one test is not that of the next."""
    _module.cache_clear()
    _origin.cache_clear()
    _sections.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "smallpkg"]:
        del sys.modules[name]


def run(script: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-S", str(script), *words], capture_output=True, text=True)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_reached_goes_in_and_runs(package: Path, packed: bool) -> None:
    text = bundle("smallpkg.main", "start", '"word"', "# A comment.", packed)
    (package / "out.py").write_text(text)
    done = run(package / "out.py")
    assert done.stdout == "WORD there 1 3\n"
    assert done.returncode == 0, done.stderr
    assert text.startswith("# A comment.\n")


def test_what_is_not_reached_stays_out(package: Path) -> None:
    text = bundle("smallpkg.main", "start", '"word"')
    for gone in (
        "OTHER",
        "def unused",
        "Unused()",
        "smallpkg.never",
        "def fail",
        '"""Say it."""',
        "Documented",
        "The entry",
    ):
        assert gone not in text, gone
    for there in (
        "# a comment that stays",
        "LIMIT = 3  # kept: it is used",
        'register("shout", str.upper)',
        "def nothing",
    ):
        assert there in text, there
    # Names come from where they are defined, not through a package that imports everything.
    assert "from smallpkg.deep.inner import helper as assist" in text
    assert "# ==== smallpkg\n" not in text


def test_tracebacks_name_the_line_of_the_file(package: Path) -> None:
    (package / "out.py").write_text(bundle("smallpkg.late", "fail"))
    done = run(package / "out.py")
    assert done.returncode == 1
    number = (package / "out.py").read_text().splitlines().index('    raise ValueError("no")') + 1
    assert f'out.py", line {number}, in fail' in done.stderr
    assert 'raise ValueError("no")' in done.stderr


def test_a_package_that_is_missing_is_asked_for_only_when_it_is_used(package: Path) -> None:
    (package / "smallpkg/late.py").write_text(
        "import nowhere_to_be_found as maybe\n\n\ndef later():\n    return maybe.a.b()\n"
    )
    (package / "out.py").write_text(bundle("smallpkg.late", "later"))
    done = run(package / "out.py")
    assert done.returncode == 1
    assert "needs the package nowhere_to_be_found; install it" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_module_of_the_package_that_is_not_in_the_file_is_not_taken_from_elsewhere(package: Path) -> None:
    (package / "smallpkg/late.py").write_text(
        "import importlib\n\n\ndef later():\n    importlib.import_module('smallpkg.' + 'never')\n"
    )
    (package / "out.py").write_text(bundle("smallpkg.late", "later"))
    # Started in the package's own folder, where Python would find it.
    done = subprocess.run([sys.executable, "-S", "out.py"], cwd=package, capture_output=True, text=True)
    assert "ModuleNotFoundError: smallpkg.never" in done.stderr
