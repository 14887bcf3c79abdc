"""The processes of a run end with the right exit code, even while their threads are at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from processes import Running
from tiny import preset, text_file, tiny


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("text")
    return ["train", preset(folder, tiny(text_file(folder))), "--out"]


@pytest.mark.slow
def test_a_script_that_catches_the_error_ends_as_it_likes(words: list[str], tmp_path: Path) -> None:
    """Python shuts such processes down. No thread may be inside PyTorch at that time."""
    setup = "faulty:a_script_of_ones_own"
    with Running([*words, str(tmp_path / "out")], tmp_path, 2, setup=setup, fresh=True) as running:
        assert running.wait(60) == [3, 3], [running.output(rank) for rank in range(2)]


def test_ranks_that_are_done_do_not_wait_for_the_last(words: list[str], tmp_path: Path) -> None:
    """The last work of rank 0, such as sending records to a dashboard, may take any time."""
    out, done = tmp_path / "out", tmp_path / "done"
    setup = "faulty:slow_last_work_on_rank_0"
    with Running([*words, str(out)], tmp_path, 2, environment={"DONE": str(done)}, setup=setup) as running:
        running.wait_for(out / "summary.json")
        running.processes[1].join(15)
        codes = [process.exitcode for process in running.processes]
        done.touch()
        assert running.wait(30) == [0, 0], running.output()
        assert codes == [None, 0]


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        ("SystemExit(143)", 143, ""),
        ("SystemExit()", 0, ""),
        ("SystemExit('no such thing')", 1, "no such thing"),
        ("os.kill(os.getpid(), signal.SIGINT)", 130, ""),
        ("GeneratorExit()", 1, "GeneratorExit"),
        ("ValueError('a mistake of ours')", 1, "ValueError: a mistake of ours"),
    ],
)
def test_a_rank_ends_at_once_whatever_ends_it(tmp_path: Path, raised: str, code: int, message: str) -> None:
    with Running([], tmp_path, environment={"RAISED": raised}, setup="faulty:ends_with_raised_error") as running:
        assert running.wait(30) == [code], running.output()
        assert (running.output().splitlines() or [""])[-1] == message
