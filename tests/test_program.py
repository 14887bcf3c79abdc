"""The version of the program that runs record."""

from pathlib import Path

import jepamba
from jepamba.program import program_version, source_digest


def test_the_digest_is_of_the_sources_alone(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "inner/kernels.cpp").write_text("int x;")
    first = source_digest(tmp_path)
    (tmp_path / "notes.txt").write_text("not source")
    assert source_digest(tmp_path) == first
    (tmp_path / "inner/kernels.cpp").write_text("int y;")
    second = source_digest(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, source_digest(tmp_path)}) == 3


def test_the_version_is_that_of_the_package_and_its_digest() -> None:
    folder = Path(jepamba.__file__).parent
    assert program_version() == f"{jepamba.__version__}+{source_digest(folder)}"


def test_a_bundle_has_no_files_to_digest() -> None:
    module = {"__name__": "jepamba.program"}
    exec(compile(Path(jepamba.__file__).with_name("program.py").read_text(), "bundle", "exec"), module)
    assert module["program_version"]() == f"{jepamba.__version__}+bundle"  # type: ignore[operator]
