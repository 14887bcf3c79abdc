"""The demo on a small text: train, pack, score in a fresh process, compare."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jepamba import demo
from jepamba.cli import main
from jepamba.cli.demo import demo_table
from jepamba.cli.flags import parse_settings
from jepamba.config import Run, with_settings
from jepamba.errors import UserError
from jepamba.presets import load_preset
from test_cli import TINY, documents


def small_run(text: Path) -> Run:
    words = [*TINY, "--data.train", str(text), "--train.steps", "5", "--data.holdout", "0.25"]
    return with_settings(load_preset("quick"), parse_settings(words))


def test_the_demo_trains_for_the_seconds_that_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(run: Run, out: Path, preset: str) -> None:
        raise UserError(f"{preset}, {run.train.steps} steps, {run.train.seconds} seconds")

    monkeypatch.setattr(demo, "train", refused)
    with pytest.raises(UserError, match=r"quick, 0 steps, 7\.0 seconds"):
        demo.run_demo(tmp_path, 7)


def test_the_demo_ends_with_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text, out = documents(tmp_path / "text"), tmp_path / "run"

    def small(name: str) -> Run:
        assert name == "quick"
        return small_run(text)

    monkeypatch.setattr(demo, "load_preset", small)
    assert main(["demo", "--json", "--out", str(out)]) == 0
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    # Three of twelve documents are held out, and scored to the last byte.
    assert found["model"]["bytes"] == (out / "held-out.txt").stat().st_size - 2
    summary = json.loads((out / "summary.json").read_text())
    assert found["model"]["bpb"] == pytest.approx(summary["bpb_calibrated"]["bpb"], rel=1e-6)
    assert found["model"]["artifact_bytes"] == (out / "artifact.jepa").stat().st_size
    names = [row["compressor"].split()[0] for row in found["baselines"]]
    assert names == ["gzip", "bzip2", "xz", "zstd", "brotli"]
    assert all(row["bpb_with_history"] < row["bpb"] for row in found["baselines"])
    for sample in (found["sample"], found["shipped_sample"]):
        assert sample.startswith("The")
        assert sample in demo_table(found)
    assert found["sample"] != found["shipped_sample"]
    assert summary["baselines"] == found["baselines"]
    assert "brotli" in (out / "report.html").read_text()
    assert summary["val_overlap"] == found["overlap"] <= 0.01
    table = demo_table(found)
    share = f"{found['overlap']:.2%} of their 50-byte strings are in the training text"
    assert f"{found['model']['bytes']:,} bytes are held out, {share}" in captured.err
    assert share in table
    assert share in (out / "report.html").read_text()
    assert f"{found['model']['bpb']:.3f}" in table
    for row in found["baselines"]:
        assert f"{row['bpb']:.3f}" in table


def test_held_out_text_is_what_training_left_out(tmp_path: Path) -> None:
    from jepamba.data import corpus

    text = documents(tmp_path / "text")
    run = small_run(text)
    splits = demo._documents(run.data)
    held_out = corpus(run.data).val
    assert held_out.tokenizer.decode(held_out.read(0, len(held_out))) == b"".join(splits["val"])
    assert sum(map(len, splits["val"] + splits["train"])) == sum(file.stat().st_size for file in text.iterdir())
