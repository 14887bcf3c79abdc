"""A machine that pauses does not spend the budget of a run."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jepamba.train import train
from jepamba.train.loop import Loop
from jepamba.train.pauses import FIRST, PauseDetector
from jepamba.train.step import Trainer
from tiny import text_file, tiny


def pauses(*seconds: float, work: object = None) -> list[bool]:
    detector = PauseDetector()
    return [detector.usual(duration, work) is not None for duration in seconds]


def test_a_pause_is_long_and_unusual() -> None:
    assert pauses(*[0.1] * FIRST, 30.0, 0.1) == [False] * FIRST + [True, False]
    assert not any(pauses(*[0.1] * FIRST, 9.9)), "10 s at least"
    assert not any(pauses(*[2.0] * FIRST, 39.0)), "20 times the median at least"
    assert any(pauses(*[2.0] * FIRST, 41.0))
    assert not any(pauses(*[0.1] * (FIRST - 1), 30.0)), "never one of the first"
    # A machine that has become slow trains on.
    assert sum(pauses(*[0.1] * 100, *[30.0] * 100)) < 15


def test_the_first_steps_of_other_work_are_no_pause() -> None:
    detector = PauseDetector()
    for _ in range(50):
        detector.usual(0.1, (512, False))
    assert detector.usual(30.0, (512, True)) is None
    assert all(detector.usual(0.1, (512, True)) is None for _ in range(FIRST))
    assert detector.usual(30.0, (512, True)) == pytest.approx(0.1)


@pytest.mark.parametrize("at", [3, 20])
def test_a_pause_leaves_the_budget_and_the_warmdown(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = 0.0

    def step(trainer: Trainer, fraction: float) -> dict[str, float]:
        nonlocal clock
        record = original(trainer, fraction)
        clock += 30.0 if trainer.state.counters.step == at else 0.25
        return record

    original = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", step)
    monkeypatch.setattr("jepamba.train.loop.time", SimpleNamespace(perf_counter=lambda: clock))
    monkeypatch.setattr(Loop, "_export", lambda loop: asdict(loop.state.counters))
    settings: dict[str, Any] = {"train__steps": 0, "train__seconds": 10.0, "quant__qat_fraction": 0.0}
    counters = train(tiny(text_file(tmp_path), **settings), tmp_path / "run")
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    told = [record for record in records if "a pause" in record.get("what", "")]
    if at < FIRST:
        assert not told
        assert counters["step"] == at
        return
    assert (counters["step"], counters["seconds"]) == (41, 10.0)
    assert [(record["step"], record["what"]) for record in told] == [
        (at, "a step took 30.0 s, the others 0.25 s: a pause, not training time")
    ]
    assert told[0]["what"] in capsys.readouterr().err
    assert [record["lr_scale"] for record in records if record["kind"] == "step"][-1] < 0.2


def test_the_step_where_the_latent_terms_end_is_no_pause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    works: list[Any] = []

    def usual(detector: PauseDetector, seconds: float, work: Any) -> None:
        works.append(work)

    monkeypatch.setattr(PauseDetector, "usual", usual)
    monkeypatch.setattr(Loop, "_export", lambda loop: {})
    settings: dict[str, Any] = {"train__steps": 4, "jepa__until": 0.5, "quant__qat_fraction": 0.0}
    train(tiny(text_file(tmp_path), **settings), tmp_path / "run")
    assert works[0] == works[1] != works[2] == works[3]
