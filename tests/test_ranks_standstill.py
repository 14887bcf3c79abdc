"""A rank that stands still, or waits for its disk, is not waited for."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from processes import Running
from ranks_faulted import stop_one
from tiny import preset, text_file, tiny

STEPS = 24


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("text"))


@pytest.mark.parametrize("still", [0, 1])
def test_a_rank_that_stands_still_is_not_waited_for(text: Path, tmp_path: Path, still: int) -> None:
    """Stopped, not ended: no connection breaks, as where a machine loses its power. Rank 0 has the store, too."""
    out = tmp_path / "out"
    words = ["train", preset(tmp_path, tiny(text, train__steps=STEPS, train__checkpoint_every=3)), "--out", str(out)]
    running = Running(words, tmp_path, 2, setup="faulty:impatient")
    stop_one(running, out, still, lines=6, seconds=60)


@pytest.mark.parametrize("where", ["reading", "scoring"])
def test_a_rank_that_stands_still_outside_the_steps_is_not_waited_for(text: Path, tmp_path: Path, where: str) -> None:
    running = Running(
        [
            "train",
            preset(tmp_path, tiny(text, train__steps=STEPS, train__checkpoint_every=3)),
            "--out",
            str(tmp_path / "out"),
        ],
        tmp_path,
        2,
        setup=f"faulty:rank_1_stands_still_while_{where}",
    )
    running.processes[0].join(60)
    ended = running.processes[0].exitcode
    running.signal(signal.SIGKILL)
    running.wait()
    assert ended == 2
    assert running.said(0).splitlines()[-1].startswith("jepamba: rank 1 is gone without a word")


def test_a_rank_tells_why_it_fails_before_it_waits_for_its_disk(text: Path, tmp_path: Path) -> None:
    words = [
        "train",
        preset(tmp_path, tiny(text, train__steps=STEPS, train__checkpoint_every=3)),
        "--out",
        str(tmp_path / "out"),
    ]
    running = Running(words, tmp_path, 2, setup="faulty:hanging_disk_on_rank_0")
    running.processes[1].join(40)
    codes = [process.exitcode for process in running.processes]
    running.signal(signal.SIGKILL)
    running.wait()
    # Rank 0 still waits: a disk may be slow.
    assert codes == [None, 2]
    reason = "/data/text_train_000003.bin: the shard can no longer be read (Input/output error)"
    assert running.said(1).splitlines()[-1] == f"jepamba: rank 0 ended: {reason}"
