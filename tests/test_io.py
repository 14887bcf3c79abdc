"""Files that are written: whole or not at all, never a device replaced, permissions as the user has them."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from jepamba import io
from jepamba.config import ConfigError
from jepamba.config import build as build_settings
from jepamba.data import build, write_shard
from jepamba.errors import UserError
from jepamba.folder_lock import locked
from jepamba.io import atomic_write, check_writable, make_private_folder
from jepamba.text import ByteTokenizer


@pytest.fixture(params=[0o022, 0o077, 0o002], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_parts_are_the_file_and_replace_the_one_before(tmp_path: Path) -> None:
    file = tmp_path / "new" / "folder" / "file"
    atomic_write(file, b"a longer content", b" than the next")
    with file.open("rb") as reader:
        atomic_write(file, b"a", b"", b"b")
        assert file.read_bytes() == b"ab"
        assert reader.read() == b"a longer content than the next"  # who had it open still reads the old file
    assert os.listdir(file.parent) == ["file"]


def test_a_new_file_has_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    atomic_write(tmp_path / "file", b"x")
    write_shard(tmp_path / "shard", np.ones(3, dtype=np.uint16))
    assert mode(tmp_path / "file") == mode(tmp_path / "shard") == 0o666 & ~umask


def test_a_folder_of_shards_has_what_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    build(["text"], ByteTokenizer(), tmp_path / "out")
    assert mode(tmp_path / "out") == 0o777 & ~umask
    assert {mode(file) for file in (tmp_path / "out").iterdir()} == {0o666 & ~umask}


@pytest.mark.parametrize("kept", [0o600, 0o664, 0o444, 0o755])
def test_a_file_that_is_replaced_hands_on_its_mode(tmp_path: Path, umask: int, kept: int) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(kept)
    atomic_write(file, b"new")
    assert (file.read_bytes(), mode(file)) == (b"new", kept)


def test_a_private_file_is_private_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(0o600)
    seen, chmod = [], os.chmod

    def noted(path: Path, wanted: int) -> None:
        seen.append(mode(path))
        chmod(path, wanted)

    monkeypatch.setattr(os, "chmod", noted)
    atomic_write(file, b"new")
    assert seen == [0o600]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_and_its_file_is_written(tmp_path: Path, exists: bool) -> None:
    (tmp_path / "folder").mkdir()
    real, link = tmp_path / "folder" / "real", tmp_path / "link"
    if exists:
        real.write_bytes(b"old")
    link.symlink_to("middle")
    (tmp_path / "middle").symlink_to("folder/real")
    atomic_write(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "middle").is_symlink()
    assert not real.is_symlink()
    assert real.read_bytes() == b"new"
    assert os.listdir(real.parent) == ["real"]


def test_a_pipe_is_written_through(tmp_path: Path) -> None:
    pipe, link = tmp_path / "pipe", tmp_path / "link"
    os.mkfifo(pipe)
    link.symlink_to(pipe)
    for path in (pipe, link):
        found: list[bytes] = []
        reader = Thread(target=lambda into: into.append(pipe.read_bytes()), args=(found,), daemon=True)
        reader.start()
        atomic_write(path, b"one, ", b"two")
        reader.join(30)
        assert found == [b"one, two"]
        assert pipe.is_fifo()
    assert sorted(os.listdir(tmp_path)) == ["link", "pipe"]


def test_a_pipe_that_nobody_reads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(io, "PIPE_SECONDS", 0.1)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="pipe: nobody reads from this pipe"):
        atomic_write(pipe, b"content")
    assert [file.is_fifo() for file in tmp_path.iterdir()] == [True]


def test_a_file_that_root_replaces_stays_its_owners(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give a file away")
    file = tmp_path / "file"
    file.write_bytes(b"old")
    file.chmod(0o600)
    os.chown(file, 12345, 54321)
    atomic_write(file, b"new")
    assert (file.read_bytes(), file.stat().st_uid, file.stat().st_gid, mode(file)) == (b"new", 12345, 54321, 0o600)


def test_a_device_is_written_through(tmp_path: Path) -> None:
    device = tmp_path / "null"
    try:
        os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        device.open("wb").close()
    except OSError:  # not root, or a file system without devices
        device = tmp_path / "link"
        device.symlink_to(os.devnull)
    before = (device.lstat().st_ino, device.stat().st_rdev)
    atomic_write(device, b"nothing of this stays")
    assert (device.lstat().st_ino, device.stat().st_rdev) == before
    assert os.listdir(tmp_path) == [device.name]


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"])
@pytest.mark.parametrize("to", ["pipe", "file", "file, appended"])
def test_standard_output_comes_in_order_wherever_it_leads(tmp_path: Path, name: str, to: str) -> None:
    code = (
        "import sys; from pathlib import Path; from jepamba.io import atomic_write\n"
        f"print('before', flush=True); atomic_write(Path({name!r}), b'written '); print('after')"
    )
    if not os.path.lexists(name):
        pytest.skip(f"no {name} here")
    file = tmp_path / "file"
    file.write_text("old ")
    if to == "pipe":
        found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout
    else:
        with file.open("ab" if "appended" in to else "wb") as stream:
            subprocess.run([sys.executable, "-c", code], stdout=stream, check=True)
        found = file.read_bytes()
    assert found == (b"old " if "appended" in to else b"") + b"before\nwritten after\n"


@pytest.mark.parametrize("fails", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for name, before in (("old", b"old"), ("new", None)):
        folder = tmp_path / name
        folder.mkdir()
        if before:
            (folder / "file").write_bytes(before)
        with monkeypatch.context() as patch:
            patch.setattr(os, fails, full)
            with pytest.raises(OSError, match="No space left") as caught:
                atomic_write(folder / "file", b"new")
        assert caught.value.filename == str(folder / "file")
        assert [file.read_bytes() for file in folder.iterdir()] == ([before] if before else [])


def test_a_folder_a_loop_of_links_and_a_file_as_a_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_bytes(b"x")
    for path in (tmp_path / "folder", tmp_path / "loop", tmp_path / "file" / "below"):
        with pytest.raises(OSError, match=str(path)):
            atomic_write(path, b"x")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "loop"]
    assert os.listdir(tmp_path / "folder") == []


def test_a_loop_of_links_and_a_nul_are_one_line(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path in (loop, tmp_path / "a\0b"):
        for check in (check_writable, make_private_folder):
            with pytest.raises(UserError):
                check(path)
        with pytest.raises(UserError), locked(path):
            pass
    with pytest.raises(ConfigError, match="NUL"):
        build_settings({"data.cache": "a\0b"})
