"""Tests of the compilation of C++ kernels: the cache, its key, and machines without a working compiler."""

import ctypes
from pathlib import Path

import pytest

from jepamba.ops import cpp
from ops.cpp_cases import needs_compiler

SOURCE = """#include "vectors.h"
extern "C" float lane_sum() {
    Vec mostly = splat(X), each[LANES];
    mostly[3] = 1;
    for (int i = 0; i < LANES; i++) each[i] = splat(i);
    return sum(mostly) + sums(each)[3];
}
"""


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "kernel.cpp"
    path.write_text(SOURCE)
    return path


@needs_compiler
def test_a_library_is_compiled_once_for_its_source_and_constants(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def value(**constants: int) -> float:
        cpp.library.cache_clear()
        loaded = cpp.library(source, **constants)
        assert loaded is not None
        loaded.lane_sum.restype = ctypes.c_float
        return float(loaded.lane_sum())

    # One lane of 1, the others of X; and all lanes of 3.
    assert value(X=2, LANES=16) == 31 + 48
    assert value(X=3, LANES=16) == 46 + 48
    monkeypatch.setattr(cpp.subprocess, "run", None)
    assert value(X=2, LANES=16) == 31 + 48
    files = list((source.parent / "cache" / "jepamba" / "kernels").iterdir())
    assert len(files) == 2, "no unfinished files stay"


@needs_compiler
@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_sums_of_any_width(source: Path, lanes: int) -> None:
    loaded = cpp.library(source, X=2, LANES=lanes)
    assert loaded is not None
    loaded.lane_sum.restype = ctypes.c_float
    assert loaded.lane_sum() == 2 * (lanes - 1) + 1 + 3 * lanes


@needs_compiler
def test_a_source_that_does_not_compile_gives_no_library(source: Path) -> None:
    source.write_text("not C++")
    with pytest.warns(UserWarning, match="slower code instead: .*kernel.cpp"):
        assert cpp.library(source) is None


@needs_compiler
def test_the_reason_is_the_first_error_or_the_time(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # "In file included from" is printed before the error.
    (source.parent / "part.h").write_text("not C++")
    source.write_text('#include "part.h"')
    with pytest.warns(UserWarning, match=r"slower code instead: .*part.h:1:\d+: error: "):
        assert cpp.library(source) is None
    monkeypatch.setattr(cpp, "_LIMIT_S", 1e-3)
    with pytest.warns(UserWarning, match="the compiler took longer than 0.001 s"):
        assert cpp.library(source, X=1) is None


def test_without_a_compiler_there_is_no_library(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "")
    cpp.compiler.cache_clear()
    try:
        assert cpp.library(source, X=1) is None
    finally:
        cpp.compiler.cache_clear()
