"""`jepamba watch`: curves of characters, and a run in progress."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from examples import examples
from jepamba.cli import main
from jepamba.errors import UserError
from jepamba.report.records import MetricsFile
from jepamba.report.terminal import plot_curve, short_number
from jepamba.report.watch import RunView, RunWatcher, headline

SHIFTS = {
    0x01: (0, 0),
    0x02: (1, 0),
    0x04: (2, 0),
    0x40: (3, 0),
    0x08: (0, 1),
    0x10: (1, 1),
    0x20: (2, 1),
    0x80: (3, 1),
}


def dots(lines: list[str]) -> np.ndarray:
    """The dots of a curve, (rows, columns), without its axes."""
    rows = [line.partition("┤")[2] for line in lines[:-1]]
    found = np.zeros((4 * len(rows), 2 * len(rows[0])), dtype=bool)
    for index, row in enumerate(rows):
        for column, letter in enumerate(row):
            for bit, (down, across) in SHIFTS.items():
                found[4 * index + down, 2 * column + across] = bool((ord(letter) - 0x2800) & bit)
    return found


def line(kind: str, step: int, **values: object) -> str:
    return json.dumps({"kind": kind, "step": step, **values}) + "\n"


def steps(first: int, last: int) -> str:
    text = ""
    for step in range(first, last + 1):
        totals = {"tokens": 100 * step, "bytes": 400 * step, "seconds": 0.5 * step}
        text += line("step", step, ce=4 / step + 1, lr_scale=1.0, tokens_per_s=200.0 + step, **totals)
    return text


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "config.toml").write_text("[train]\nsteps = 200\nseconds = 0.0\n")
    (folder / "metrics.jsonl").write_text(line("event", 0, what="computing") + steps(1, 50) + line("val", 50, bpb=0.5))
    return folder


def test_a_rising_line_is_a_diagonal() -> None:
    lines = plot_curve([(x, float(x)) for x in range(40)], 26, 11)
    assert len(lines) == 11
    found = dots(lines)
    where = [int(np.flatnonzero(column).mean()) for column in found.T]
    assert where[0] == 39
    assert where[-1] == 0
    assert where == sorted(where, reverse=True)
    assert found.any(0).all()
    assert lines[0].split()[0] == "39"
    assert lines[-2].split()[0] == "0"
    assert lines[-1].split() == ["0", "39"]


def test_neighbours_are_joined_and_means_are_drawn() -> None:
    found = dots(plot_curve([(0, 0.0), (1, 1.0), (2, 0.0)], 30, 9))
    assert found.any(0).all()
    # A thousand points in a few columns: what is drawn is their mean, here the middle.
    noise = [(x, float(x % 2)) for x in range(1000)]
    where = np.nonzero(dots(plot_curve(noise, 15, 9)))[0]
    assert where.min() > 10
    assert where.max() < 22


def test_a_steep_start_does_not_flatten_the_rest() -> None:
    points = [(x, 1000.0 if x == 0 else 2 - x / 100) for x in range(100)]
    assert float(plot_curve(points, 40, 10)[0].split()[0]) < 2.1


@settings(max_examples=examples(100), deadline=None)
@given(
    st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=120), st.integers(1, 120), st.integers(2, 30), st.booleans()
)
def test_any_curve_fits_its_frame(ys: list[float], width: int, height: int, ascii_only: bool) -> None:
    lines = plot_curve([(float(x), y) for x, y in enumerate(ys)], width, height, ascii_only)
    assert len(lines) == height
    # A frame that is narrower than four characters and its labels is left to overflow.
    margin = max(len(line.partition("|" if ascii_only else "┤")[0]) for line in lines[:-1])
    assert max(map(len, lines[:-1])) <= max(width, margin + 5)
    assert not ascii_only or all(line.isascii() for line in lines)
    assert any(set(line.partition("|" if ascii_only else "┤")[2]) - {" ", "⠀"} for line in lines[:-1])
    assert plot_curve([], width, height) == []


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (1.23456, "1.235"), (123.4, "123"), (12_345.0, "12.35 k"), (3.5e9, "3.5 G"), (2e-05, "2e-05")],
)
def test_figures_are_short(value: float, text: str) -> None:
    assert short_number(value) == text


def test_a_file_is_read_as_it_grows(run: Path) -> None:
    path = run / "metrics.jsonl"
    file = MetricsFile(path)
    assert [len(file.read().steps) for _ in range(2)] == [50, 50]
    with path.open("a") as stream:
        stream.write(steps(51, 51) + '{"kind": "step", "st')
        stream.flush()
        assert len(file.read().steps) == 51
        assert file.read().broken == 0
        stream.write('ep": 52, "ce": 1.0}\n')
        stream.flush()
        found = file.read()
    assert (len(found.steps), found.broken, len(found.events)) == (52, 0, 1)
    # Resumed at step 10: the file is another one, and what was after it is gone.
    (run / "new").write_text(steps(1, 10))
    (run / "new").replace(path)
    assert [record["step"] for record in file.read().steps] == list(range(1, 11))
    path.unlink()
    assert file.read().steps == []


def test_the_headline_and_the_curves_of_a_run(run: Path) -> None:
    status = RunWatcher(run).poll()
    assert status.state == "running"
    assert status.share == 0.25
    line_shown = headline(status)
    assert "mine: running, step 50, 25 s of training, 5,000 tokens, 1.080 nats per token" in line_shown
    assert "25% of the budget, 1 min 15 s left, 0.5000 BPB at step 50" in line_shown
    # Cross-entropy in nats, a quarter of a token a byte: 1.08 / ln 2 / 4.
    assert status.curves()["training, bits per byte"][-1] == (50, pytest.approx(0.38953, abs=1e-5))
    for width, panels in ((120, 2), (60, 1)):
        console = Console(file=io.StringIO(), width=width, force_terminal=False)
        console.print(RunView(status))
        drawn = console.file.getvalue()  # type: ignore[attr-defined]
        assert max(map(len, drawn.splitlines())) <= width
        assert drawn.count("training, bits per byte: 0.3895") == 1
        assert "training, nats" not in drawn
        assert sum("╭" in row for row in drawn.splitlines()) == 4 // panels


@pytest.mark.parametrize(("width", "height"), [(80, 24), (80, 13), (60, 24), (120, 60)])
def test_the_view_fits_the_terminal(run: Path, width: int, height: int) -> None:
    console = Console(file=io.StringIO(), width=width, height=height, force_terminal=True, color_system=None)
    console.print(RunView(RunWatcher(run).poll()))
    rows = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert len(rows) < height
    assert max(map(len, rows)) <= width
    assert "training, bits per byte: 0.3895" in "".join(rows)
    if height >= 24 and width >= 80:
        assert "tokens per second" in "".join(rows), "all four curves"


@pytest.mark.parametrize("width", [80, 60, 40])
def test_no_figure_is_cut(run: Path, width: int) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(
            line("step", 51, tokens=6100, bytes=24000, seconds=30, ce=1.5, lr_scale=0.0123456, tokens_per_s=9e5)
        )
        stream.write(line("val", 51, bpb=3.3441))
    console = Console(file=io.StringIO(), width=width, height=24, color_system=None)
    console.print(RunView(RunWatcher(run).poll()))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for figure in (": 3.344 ", "0.01235 ", ": 900 k ", "30 s of training", "3.3441 BPB at step 51"):
        assert figure in shown
    assert max(map(len, shown.splitlines())) <= width


def test_a_stopped_run_and_one_that_is_packed(run: Path) -> None:
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(line("event", 50, what="stopped by SIGINT"))
    os.utime(run / "metrics.jsonl", (1e9, 1e9))
    shown = headline(RunWatcher(run).poll())
    assert shown.startswith("mine: stopped, step 50")
    assert f"`jepamba resume {run}` continues it" in shown
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(line("event", 50, what="resumed at step 50") + steps(51, 200))
    status = RunWatcher(run).poll()
    assert status.state == "running"
    assert headline(status).endswith("the budget is spent: packing and scoring, 0.5000 BPB at step 50")


def test_states(run: Path) -> None:
    old = time.time() - 1000
    os.utime(run / "metrics.jsonl", (old, old))
    assert "silent for 16 min 40 s" in headline(RunWatcher(run).poll())
    (run / "summary.json").write_text("{}")
    assert RunWatcher(run).poll().state == "finished"
    (run / "metrics.jsonl").unlink()
    assert RunWatcher(run).poll().curves()["tokens per second"] == []
    for damaged in ("[[[", "train = 3", "[train]\nsteps = 'x'"):
        (run / "config.toml").write_text(damaged)
        assert RunWatcher(run).poll().share is None
    with pytest.raises(UserError, match="no run here"):
        RunWatcher(run / "nowhere")


def test_the_command(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(run), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["state"], found["step"], found["share"]) == ("running", 50, 0.25)
    assert found["curves"]["held-out text, bits per byte"] == [[50.0, 0.5]]
    assert main(["watch", str(run), "--once"]) == 0
    assert "mine: running, step 50" in capsys.readouterr().out
    assert main(["watch", str(run), "--every", "0"]) == 2
    assert main(["watch", str(run.parent / "none")]) == 2
    (run / "metrics.jsonl").write_text(steps(1, 5000))
    assert main(["watch", str(run), "--json"]) == 0
    thin = json.loads(capsys.readouterr().out)["curves"]["tokens per second"]
    assert len(thin) <= 401
    assert thin[-1] == [5000, 5200]


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_running_run_is_followed_to_its_end(run: Path) -> None:
    """In a pseudo-terminal, the view updates until the run is finished."""
    import pty

    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", **os.environ, "COLUMNS": "100", "LINES": "50"}
    words = [sys.executable, "-m", "jepamba", "watch", str(run), "--every", "0.05"]
    watching = subprocess.Popen(words, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = bytearray()

    def listen() -> None:
        while True:
            try:
                part = os.read(ours, 65536)
            except OSError:
                return
            if not part:
                return
            seen.extend(part)

    listener = threading.Thread(target=listen)
    listener.start()

    def wait_for(words: bytes) -> None:
        end = time.monotonic() + 60
        while words not in seen:
            assert time.monotonic() < end, seen[-2000:]
            time.sleep(0.02)

    wait_for(b"step 50")
    with (run / "metrics.jsonl").open("a") as stream:
        stream.write(steps(51, 60))
    wait_for(b"step 60")
    (run / "summary.json").write_text("{}")
    assert watching.wait(60) == 0
    listener.join()
    os.close(ours)
    assert b"finished" in seen
