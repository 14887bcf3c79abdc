"""Tests of the compilation of C++ kernels: the cache, its key, and machines without a working compiler."""

import ctypes
import math
import platform
import subprocess
from pathlib import Path

import pytest
import torch

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
    assert value(X=2, LANES=4) == 7 + 12
    assert value(X=3, LANES=4) == 10 + 12
    monkeypatch.setattr(cpp.subprocess, "run", None)
    assert value(X=2, LANES=4) == 7 + 12
    files = list((source.parent / "cache" / "jepamba" / "kernels").iterdir())
    assert len(files) == 2, "no unfinished files stay"


EACH_LANE = """#include "vectors.h"
extern "C" void each_lane(const float* a, const float* b, float* largest, float* smallest, float* exps, bf16* rounded) {
    store(largest, maximum(load(a), load(b)));
    store(smallest, minimum(load(a), load(b)));
    store(exps, exp(load(a)));
    store(rounded, load(a));
}
"""


@needs_compiler
@pytest.mark.parametrize("lanes", [None, 4, 8, 16])
def test_vectors_of_any_width(source: Path, lanes: int | None) -> None:
    """The width of the registers (None), a wider one, and a narrower one."""
    chosen = {} if lanes is None else {"LANES": lanes}
    loaded = cpp.library(source, X=2, **chosen)
    assert loaded is not None
    loaded.lane_sum.restype = ctypes.c_float
    width = int((loaded.lane_sum() + 1) / 5)
    assert loaded.lane_sum() == 2 * (width - 1) + 1 + 3 * width
    assert width == (lanes or width)
    source.write_text(EACH_LANE)
    cpp.library.cache_clear()
    loaded = cpp.library(source, **chosen)
    assert loaded is not None
    tie = 1 + 2**-8  # between two values of bf16; the even one is 1
    a = torch.tensor([-1000, 1000, math.nan, tie, 1 + 3 * 2**-8, -0.5, 20, 3e38, 0, -87, 88, 1e-3, -1, 2, -3, 1])
    b = torch.tensor([1, 2, 3, math.nan, -5, -0.25, 30, 0, -1, -90, 0, 2e-3, 1, 1, 1, 1])
    found = torch.full((3, 16), -7.0)
    rounded = torch.empty(16, dtype=torch.bfloat16)
    for start in range(0, 16, width):
        rows = [a[start:], b[start:], *found[:, start:], rounded[start:]]
        loaded.each_lane(*(ctypes.c_void_p(row.data_ptr()) for row in rows))
    for values, taken in ((found[0], a > b), (found[1], a < b)):
        torch.testing.assert_close(values, torch.where(taken, a, b), rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found[2], a.clamp(-87, 88).exp(), rtol=1e-6, atol=0, equal_nan=True)
    assert torch.equal(rounded.view(torch.int16)[~a.isnan()], a.bfloat16().view(torch.int16)[~a.isnan()])
    assert rounded[2].isnan()


@needs_compiler
@pytest.mark.skipif(platform.machine() != "x86_64", reason="the instruction is x86's")
def test_bf16_is_written_by_the_processor_s_instruction_where_it_has_one(source: Path) -> None:
    source.write_text(EACH_LANE)
    flags = ["-std=c++17", "-O3", "-w", f"-I{Path(cpp.__file__).parent}", "-S", "-o", "-", str(source)]
    for target, has_it in (("sapphirerapids", True), ("x86-64-v3", False)):
        done = subprocess.run(
            [str(cpp.compiler()), f"-march={target}", *flags], capture_output=True, text=True, check=True
        )
        assert ("vcvtneps2bf16" in done.stdout) == has_it


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
