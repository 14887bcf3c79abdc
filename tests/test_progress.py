"""Tests of progress output: plain lines at intervals without a terminal, and a bar on one."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from jepamba import progress
from jepamba.progress import Progress, duration


class Stream(io.StringIO):
    def __init__(self, terminal: bool) -> None:
        super().__init__()
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal


@pytest.fixture
def stream(monkeypatch: pytest.MonkeyPatch) -> Stream:
    stream = Stream(terminal=False)
    monkeypatch.setattr(progress, "_plain", False)
    # Not sys.stderr itself: pytest puts its own there again before the test's body runs.
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=stream))
    return stream


def test_a_short_task_prints_nothing_off_a_terminal(stream: Stream) -> None:
    with Progress("reading") as report:
        for step in range(100):
            report(step, 100)
    assert stream.getvalue() == ""


def test_a_long_task_prints_a_line_each_interval_and_one_at_the_end(
    monkeypatch: pytest.MonkeyPatch, stream: Stream
) -> None:
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    with Progress("training") as report:
        for step in range(1, 51):
            clock[0] += 0.5
            report(step, 50, f"loss {step}")
    assert stream.getvalue().splitlines() == [
        "training: 40%, 15 s left, 10 s elapsed, loss 20",
        "training: 80%, 5 s left, 20 s elapsed, loss 40",
        "training: 100%, 25 s elapsed, loss 50",
    ]


def test_a_terminal_gets_a_bar(stream: Stream) -> None:
    stream.terminal = True
    with Progress("scoring") as report:
        report(3, 4, "1.5 BPB")
    assert "scoring" in stream.getvalue()
    assert "75%" in stream.getvalue()


@pytest.mark.parametrize("columns", [80, 60])
def test_a_narrow_terminal_cuts_the_note_alone(monkeypatch: pytest.MonkeyPatch, stream: Stream, columns: int) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    stream.terminal, clock = True, [0.0]
    # Rich imports its clock by name.
    monkeypatch.setattr("rich.console.monotonic", lambda: clock[0])
    with Progress("scoring with sliding windows, stride 16") as report:
        for step in range(1, 5):
            clock[0] += 200.0
            report(step, 10, f"step {step}, " + "and a long note " * 10)
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", stream.getvalue()).replace("\r", "\n").splitlines()
    last = [line for line in shown if line.strip()][-1]
    assert re.match(r" 40% ━+.━+ 20 min 00 s left, 13 min 20 s elapsed ", last)
    assert len(last) == columns
    assert columns < 80 or re.search("elapsed scoring with .*…$", last)


def test_a_task_without_a_total_shows_its_time(stream: Stream) -> None:
    stream.terminal = True
    with Progress("packing"):
        pass
    assert "0 s elapsed packing" in stream.getvalue()
    assert "left" not in stream.getvalue()
    assert "%" not in stream.getvalue()


def test_no_bar_where_machines_read(stream: Stream) -> None:
    progress.plain_lines()
    stream.terminal = True
    with Progress("scoring") as report:
        report(3, 4)
    assert stream.getvalue() == ""


def test_an_unknown_total_is_no_error(stream: Stream) -> None:
    with Progress("waiting") as report:
        report(0, 0)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.2, "0 s"), (59.4, "59 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3599.9, "1 h 00 min")],
)
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected
