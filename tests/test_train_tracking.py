"""Dashboards: the records that trackio and wandb receive; their failure does not end a run."""

from __future__ import annotations

import importlib.util
import json
import sqlite3
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from dashboard import Dashboard
from jepamba.config import ConfigError, Run, Train, from_dict
from jepamba.errors import UserError
from jepamba.train import resume, train
from jepamba.train.metrics import MetricsLog
from jepamba.train.tracking import IDENTITY, track
from processes import SECONDS, Running
from tiny import preset, text_file, tiny


@pytest.fixture(params=["trackio", "wandb"])
def dashboard(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Dashboard:
    module = Dashboard(request.param)
    monkeypatch.setitem(sys.modules, request.param, module)
    return module


def run_with(library: str) -> Run:
    return from_dict({"train": {"steps": 3, "track": library}})


def log_of(library: str, out: Path) -> MetricsLog:
    return MetricsLog(out / "metrics.jsonl", track(run_with(library), out))


def record(metrics: MetricsLog) -> None:
    metrics.append("event", 0, what="computing")
    metrics.append("step", 1, ce=2.5, tokens=64)
    metrics.append("terms", 1, grad_ce=0.5)
    metrics.append("val", 1, bpb=1.5, mode="plain", final=False)
    metrics.append("val", 1, bpb=1.25, mode="plain", final=True)


def test_a_run_is_shown(dashboard: Dashboard, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    record(log_of(dashboard.__name__, out))
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 5
    identity = (out / IDENTITY).read_text().strip()
    (first, settings), *rest = dashboard.calls
    assert first == "init"
    assert (settings["project"], settings["name"], settings["resume"]) == ("jepamba", f"mine-{identity}", "allow")
    assert settings["config"]["train"]["steps"] == 3
    assert settings.get("id") == (identity if dashboard.__name__ == "wandb" else None)
    assert rest == [
        ("log", (1, {"train/ce": 2.5, "train/tokens": 64})),
        ("log", (1, {"terms/grad_ce": 0.5})),
        ("log", (1, {"val/bpb": 1.5})),
        ("log", (1, {"val/bpb": 1.25})),
        ("finish", None),
    ]
    said = capsys.readouterr()
    assert said.out == ""
    assert "does not belong" in said.err


def test_a_resumed_run_keeps_its_name(dashboard: Dashboard, tmp_path: Path) -> None:
    for _ in range(2):
        log_of(dashboard.__name__, tmp_path).append("step", 1, ce=2.5)
    names = [values["name"] for what, values in dashboard.calls if what == "init"]
    assert len(names) == 2
    assert len(set(names)) == 1
    (tmp_path / IDENTITY).write_bytes(b"\xff damaged")
    log_of(dashboard.__name__, tmp_path).append("step", 1, ce=2.5)
    assert len((tmp_path / IDENTITY).read_text().strip()) == 8


@pytest.mark.parametrize("failing", ["log", "finish"])
def test_a_dashboard_that_fails_does_not_end_the_run(
    dashboard: Dashboard, tmp_path: Path, capsys: pytest.CaptureFixture[str], failing: str
) -> None:
    dashboard.failing = failing
    metrics = log_of(dashboard.__name__, tmp_path)
    record(metrics)
    metrics.append("step", 2, ce=2.25)
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("jepamba:")]
    failure = "failed and gets no more records: RuntimeError: the network is gone"
    assert said == [f"jepamba: {dashboard.__name__} {failure}"]


def test_what_cannot_start_is_one_line(dashboard: Dashboard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dashboard.failing = "init"
    with pytest.raises(UserError, match=f"{dashboard.__name__} does not start: RuntimeError: the network is gone"):
        record(log_of(dashboard.__name__, tmp_path))
    for broken in (None, ModuleType("a folder of the same name")):
        monkeypatch.setitem(sys.modules, dashboard.__name__, broken)
        with pytest.raises(UserError, match=rf"pip install '\.\[{dashboard.__name__}\]'"):
            log_of(dashboard.__name__, tmp_path)


def test_a_whole_run_and_its_resumption_are_shown(dashboard: Dashboard, tmp_path: Path) -> None:
    run = tiny(text_file(tmp_path), train__steps=4, train__val_every=2, train__track=dashboard.__name__)
    out = tmp_path / "mine"
    summary = train(run, out)
    logged = [numbers for what, (_, numbers) in dashboard.calls[1:-1] if what == "log"]
    assert [numbers["train/tokens"] for numbers in logged if "train/tokens" in numbers] == [128, 256, 384, 512]
    assert logged[-1]["val/bpb"] == summary["bpb_plain"]["bpb"]
    assert [what for what, _ in dashboard.calls].count("finish") == 1
    dashboard.calls.clear()
    resume(out)
    assert [what for what, _ in dashboard.calls] == ["init", "log", "finish"]


def diverging(folder: Path) -> Run:
    """A run that logs one step and ends at the second, whose loss is not finite."""
    return tiny(
        text_file(folder), train__track="trackio", train__skip_limit=0, optim__muon_lr=1e30, optim__adam_lr=1e30
    )


@pytest.mark.parametrize("dashboard", ["trackio"], indirect=True)
@pytest.mark.parametrize("trouble", ["", "failing", "slow"])
def test_a_run_that_ends_with_an_error_takes_leave(
    dashboard: Dashboard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    trouble: str,
) -> None:
    """The dashboard is finished once, within the time-out. The error is the run's, whatever the dashboard does."""
    dashboard.failing, dashboard.slow = "finish" * (trouble == "failing"), 1.0 * (trouble == "slow")
    monkeypatch.setattr("jepamba.train.loop.CLOSE_TIMEOUT", 0.2 if trouble == "slow" else 60.0)
    with pytest.raises(UserError, match=r"more than train.skip_limit = 0"):
        train(diverging(tmp_path), tmp_path / "out")
    assert [what for what, _ in dashboard.calls] == ["init", "log", *([] if trouble else ["finish"])]
    said = [line for line in capsys.readouterr().err.splitlines() if "gets no more records" in line]
    lines = {
        "failing": "RuntimeError: the network is gone",
        "slow": "TimeoutError: records that it did not send within 0.2 s",
    }
    assert len(said) == bool(trouble)
    assert lines.get(trouble, "") in "".join(said)
    for thread in threading.enumerate():
        if thread.name == "dashboard":
            thread.join()


@pytest.mark.parametrize("size", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_processes_that_end_with_an_error_take_leave(tmp_path: Path, size: int) -> None:
    """Several ranks end without Python's exit handlers."""
    words = ["train", preset(tmp_path, diverging(tmp_path)), "--out", str(tmp_path / "out")]
    running = Running(words, tmp_path, size, {"CALLS": str(tmp_path / "calls")}, setup="faulty:dashboard")
    assert running.wait() == [2] * size
    assert "train.skip_limit = 0: lower" in running.last_words(0)
    assert (tmp_path / "calls").read_text().split() == ["init", "log", "finish"]


def test_a_rank_that_is_terminated_while_it_packs_takes_leave(tmp_path: Path) -> None:
    run = tiny(text_file(tmp_path), train__track="trackio", train__steps=2)
    words = ["train", preset(tmp_path, run), "--out", str(tmp_path / "out")]
    running = Running(words, tmp_path, 2, {"CALLS": str(tmp_path / "calls")}, setup="faulty:terminated_while_packing")
    assert running.wait() == [143, 2]
    assert (tmp_path / "calls").read_text().split() == ["init", "log", "log", "finish"]


@pytest.mark.slow
def test_ranks_wait_for_a_slow_dashboard_and_part_together(tmp_path: Path) -> None:
    run = tiny(text_file(tmp_path), train__track="trackio", train__steps=2)
    words = ["train", preset(tmp_path, run), "--out", str(tmp_path / "out")]
    environment = {"CALLS": str(tmp_path / "calls")}
    with Running(words, tmp_path, 2, environment, setup="faulty:slow_dashboard") as running:
        running.processes[1].join(SECONDS)
        assert (tmp_path / "calls").read_text().split() == ["init", "log", "log", "log", "finish"]
        assert running.wait() == [0, 0]


def test_without_a_dashboard_none_is_looked_for(tmp_path: Path) -> None:
    record(log_of("", tmp_path))
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    with pytest.raises(ConfigError, match="track"):
        from_dict({"train": {"steps": 3, "track": "tensorboard"}})
    assert Train(steps=1).track == ""


@pytest.mark.skipif(importlib.util.find_spec("trackio") is None, reason="trackio is not installed")
def test_trackio_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library as it is, into a folder of the test's own; its database has what metrics.jsonl has."""
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    out = tmp_path / "mine"
    out.mkdir()
    record(log_of("trackio", out))
    (file,) = (tmp_path / "trackio").glob("jepamba*.db")
    with sqlite3.connect(file) as database:
        rows = [json.loads(row[0]) for row in database.execute("select metrics from metrics order by id")]
    assert {"val/bpb": 1.25}.items() <= rows[-1].items()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed")
def test_wandb_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library as it is, offline."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    out = tmp_path / "mine"
    out.mkdir()
    record(log_of("wandb", out))
    identity = (out / IDENTITY).read_text().strip()
    assert list((out / "wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))
