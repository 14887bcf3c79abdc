"""One writer per folder: between real processes, for every command that writes a run, a study or shards."""

from __future__ import annotations

import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from folder_holder import held
from jepamba.data import build, open_folder
from jepamba.data.writer import FolderWriter
from jepamba.errors import UserError
from jepamba.folder_lock import LOCK, locked, new_folder, unused_folder, work_folder
from jepamba.text import ByteTokenizer
from jepamba.train import train
from processes import Running, records
from tiny import preset, text_file, tiny

IN_USE = "another process writes to it; wait for it, or choose another folder"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


def test_a_second_process_is_refused_until_the_first_ends(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    with held(folder), pytest.raises(UserError, match=IN_USE), locked(folder):
        pass
    with locked(folder), locked(folder):  # the same process may enter it again
        assert (folder / LOCK).exists()
    assert not folder.exists()  # nothing was written


def test_the_lock_ends_with_a_killed_process(tmp_path: Path) -> None:
    with held(tmp_path) as process:
        process.kill()
        process.wait()
        assert (tmp_path / LOCK).exists()
        with locked(tmp_path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_the_user_stays_and_so_does_its_content(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with locked(tmp_path / "empty"):
        pass
    with locked(tmp_path / "new"):
        (tmp_path / "new" / "file").touch()
    assert [file.name for file in sorted(tmp_path.rglob("*"))] == ["empty", "new", "file"]


def test_a_link_to_a_folder_is_the_folder(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    with held(tmp_path / "folder"), pytest.raises(UserError, match=f"link: {IN_USE}"), locked(tmp_path / "link"):
        pass


def test_default_names_do_not_collide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    (tmp_path / "run-2").mkdir()
    (tmp_path / "run-4").touch()
    with held(run), ExitStack() as stack:
        assert stack.enter_context(unused_folder(run)) == tmp_path / "run-3"
        assert stack.enter_context(unused_folder(run)) == tmp_path / "run-5"
        monkeypatch.setattr(Path, "exists", lambda path: path.name == LOCK)  # both looked before either made a folder
        with pytest.raises(UserError, match=IN_USE), locked(run):
            pass
        assert stack.enter_context(unused_folder(run)) == tmp_path / "run-2"
        monkeypatch.undo()
        monkeypatch.setenv("RANK", "1")
        assert stack.enter_context(unused_folder(run)) == run


def test_two_trainings_with_the_default_folder_have_two(text: Path, tmp_path: Path) -> None:
    words = ["train", preset(tmp_path, tiny(text, train__steps=6))]
    environment = {"IN_FOLDER": str(tmp_path)}
    with (
        Running(words, tmp_path / "1", environment=environment, setup="faulty:in_folder") as first,
        Running(
            [*words, "--train.seed", "4"], tmp_path / "2", environment=environment, setup="faulty:in_folder"
        ) as other,
    ):
        assert first.wait() == other.wait() == [0]
    assert [len(records(tmp_path / "runs" / name)) for name in ("tiny", "tiny-2")] == [6, 6]


def test_a_living_run_is_neither_resumed_nor_overwritten(text: Path, tmp_path: Path) -> None:
    """Also while it is stopped (Ctrl-Z). Killed, it can be resumed at once."""
    run, out = tiny(text, train__steps=40, train__checkpoint_every=4), tmp_path / "out"
    with Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path / "1") as living:
        living.wait_for(out / "metrics.jsonl", lines=9)
        living.signal(signal.SIGSTOP)
        before = (out / "metrics.jsonl").read_bytes(), sorted(out.rglob("*"))
        for number, words in enumerate(
            (["resume", str(out)], ["train", str(tmp_path / "tiny.toml"), "--out", str(out)])
        ):
            with Running(words, tmp_path / f"refused-{number}") as refused:
                assert refused.wait() == [2]
                assert refused.output() == f"jepamba: {out}: {IN_USE}\n"
        assert ((out / "metrics.jsonl").read_bytes(), sorted(out.rglob("*"))) == before
        living.signal(signal.SIGKILL)
        living.wait()
    with Running(["resume", str(out)], tmp_path / "2") as resumed:
        assert resumed.wait() == [0]
    assert [record["step"] for record in records(out)] == list(range(1, 41))


@pytest.mark.slow
def test_a_run_whose_folder_is_moved_makes_no_second_folder(text: Path, tmp_path: Path) -> None:
    """Each checkpoint that cannot be written is said. Moved back, or resumed in its new place, the run is whole."""
    run, out, moved = tiny(text, train__steps=40, train__checkpoint_every=4), tmp_path / "out", tmp_path / "moved"
    with Running(["train", preset(tmp_path, run), "--out", str(out)], tmp_path / "1") as living:
        living.wait_for(out / "metrics.jsonl", lines=9)
        living.signal(signal.SIGSTOP)
        out.rename(moved)
        living.signal(signal.SIGCONT)
        assert living.wait() == [2]
        assert "cannot write the checkpoint (No such file or directory)" in living.output()
    assert not out.exists()
    with Running(["resume", str(moved)], tmp_path / "2") as resumed:
        assert resumed.wait() == [0]
    assert [record["step"] for record in records(moved)] == list(range(1, 41))


def test_all_ranks_are_refused(text: Path, tmp_path: Path) -> None:
    words = ["train", preset(tmp_path, tiny(text)), "--out", str(tmp_path / "out")]
    with held(tmp_path / "out"), Running(words, tmp_path / "ranks", size=2) as ranks:
        assert ranks.wait() == [2, 2]
        assert ranks.last_words(0) == ranks.last_words(1) == f"jepamba: {tmp_path / 'out'}: {IN_USE}"


def test_a_refused_training_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        train(tiny(tmp_path / "missing.txt"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_splits_that_two_processes_add_are_all_kept(tmp_path: Path) -> None:
    build(["text"], ByteTokenizer(), tmp_path)
    before = open_folder(tmp_path).splits
    with FolderWriter(tmp_path, ByteTokenizer()) as slow:
        slow.write([("a", "of the first")])
        with FolderWriter(tmp_path, ByteTokenizer()) as fast:
            fast.write([("b", "of the second")])
    assert open_folder(tmp_path).splits.keys() == before.keys() | {"a", "b"}


def test_a_split_that_another_process_added_first_is_not_replaced(tmp_path: Path) -> None:
    build(["text"], ByteTokenizer(), tmp_path)
    with ExitStack() as stack:
        stack.enter_context(pytest.raises(UserError, match="already has a 'a' split"))
        slow = stack.enter_context(FolderWriter(tmp_path, ByteTokenizer()))
        slow.write([("a", "of the first")])
        build(["of the second, longer"], ByteTokenizer(), tmp_path, "a")
    assert len(open_folder(tmp_path).tokens("a")) == len("of the second, longer") + 1


@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, *(pytest.param(other, marks=pytest.mark.slow) for other in (signal.SIGHUP, signal.SIGINT))],
)
def test_a_signal_leaves_no_hidden_folder(text: Path, tmp_path: Path, number: signal.Signals) -> None:
    words = ["data", "build", str(text), "--tokenizer", "bytes", "--out", str(tmp_path / "out" / "shards")]
    environment = {"SIGNAL": number.name}
    with Running(words, tmp_path / "log", environment=environment, setup="faulty:signal_while_tokenizing") as running:
        assert running.wait() == [128 + number]
        assert "Traceback" not in running.output()
    assert list((tmp_path / "out").iterdir()) == []


def test_the_next_command_removes_the_folder_of_a_killed_one(text: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "shards"
    words = ["data", "build", str(text), "--tokenizer", "bytes", "--out", str(out)]
    environment = {"SIGNAL": "SIGKILL"}
    with Running(words, tmp_path / "log", environment=environment, setup="faulty:signal_while_tokenizing") as running:
        assert running.wait() == [-signal.SIGKILL]
    (stale,) = out.parent.iterdir()
    mine = out.parent / f".{out.name}.notes"
    mine.mkdir()
    with work_folder(out.parent, out.name) as living:
        assert not stale.exists()
        with FolderWriter(out, ByteTokenizer()) as writer:
            writer.write([("train", "a")])
        assert sorted(out.parent.iterdir()) == sorted([living, mine, out])
    assert sorted(out.parent.iterdir()) == sorted([mine, out])


def test_an_output_may_have_the_longest_name(tmp_path: Path) -> None:
    build(["a"], ByteTokenizer(), tmp_path / ("é" * 127))
    assert [path.name for path in tmp_path.iterdir()] == ["é" * 127]


def make(out: Path) -> None:
    with new_folder(out) as folder:
        (folder / "mine").touch()
        (out / "theirs").mkdir(parents=True)


def test_a_folder_that_another_process_made_first_is_kept(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out: Directory not empty; choose another folder"):
        make(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


def test_a_new_folder_can_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with new_folder(tmp_path / "link") as folder:
        (folder / "mine").touch()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "out/mine").exists()
