"""What a run leaves for its report: its start, samples during training, a passage with its bits, and compressors."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path

import pytest
import torch

import jepamba
from jepamba.data import corpus
from jepamba.evaluate import calibrate, compressors, diagnostics
from jepamba.report.records import read_metrics
from jepamba.train import train
from jepamba.train.samples import scored_passage, training_sample
from tiny import opened, text_file, tiny


def test_a_run_logs_its_start_and_samples_and_scores_a_passage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["/somewhere/bin/jepamba", "train", "tiny", "--out", "a b"])
    run = tiny(text_file(tmp_path), train__val_every=1, train__val_tokens=64)
    summary = train(run, tmp_path / "run")
    metrics = read_metrics(tmp_path / "run/metrics.jsonl")
    (start,) = metrics.starts
    assert start["command"] == "jepamba train tiny --out 'a b'"
    assert datetime.fromisoformat(start["time"]).tzinfo is not None
    # Validations 1 to 7 of 8 steps; the last step has none.
    assert [(sample["step"], sample["prompt"]) for sample in metrics.samples] == [
        (step, run.eval.prompts[0]) for step in (1, 2, 4)
    ]
    assert all(sample["text"] for sample in metrics.samples)

    val = corpus(run.data).val
    text = val.tokenizer.decode(val.read(0, len(val)))
    pieces = [piece for document in summary["passage"]["documents"] for piece in document]
    assert "".join(piece for piece, _ in pieces).encode() == text
    bpb = sum(bits for _, bits in pieces) / len(text)
    assert bpb == pytest.approx(summary["bpb_calibrated"]["bpb"], rel=1e-3)

    assert summary["baselines"] == compressors(text)


def test_a_sample_has_the_weights_of_the_training_and_leaves_it_as_it_is(tmp_path: Path) -> None:
    state = opened(tiny(text_file(tmp_path), eval__sample_tokens=40))
    before = {name: value.clone() for name, value in state.tensors().items()}
    randomness = torch.get_rng_state()
    first = training_sample(state)
    assert first == training_sample(state)
    assert torch.equal(torch.get_rng_state(), randomness)
    assert all(torch.equal(value, before[name]) for name, value in state.tensors().items())
    with torch.no_grad():
        for parameter in state.model.parameters():
            parameter.add_(torch.randn_like(parameter))
    assert training_sample(state) != first


def test_a_character_of_several_tokens_is_one_piece(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("\0".join(f"{place}: Grüße an 日本 und zurück. " * 40 for place in range(8)), encoding="utf-8")
    run = tiny(path, data__holdout=0.5)
    train(run, tmp_path / "run")
    val = corpus(run.data).val
    found = scored_passage(jepamba.load(tmp_path / "run").artifact, run, val)
    pieces = {piece for document in found["documents"] for piece, _ in document}
    assert {"ü", "日", "本"} <= pieces
    assert all(math.isfinite(bits) and bits > 0 for document in found["documents"] for _, bits in document)
    assert 1450 < sum(len(piece.encode()) for document in found["documents"] for piece, _ in document) <= 1500
    assert len(found["documents"]) == 2


def test_calibration_and_diagnostics_say_how_far_they_are(tmp_path: Path) -> None:
    state, calls = opened(tiny(text_file(tmp_path))), list[tuple[float, float]]()

    def report(done: float, total: float, note: str = "") -> None:
        calls.append((done, total))

    calibrate(state.model, state.corpus.train, 32, 512, tokens_per_batch=128, progress=report)
    assert calls == [(128, 512), (256, 512), (384, 512), (512, 512)]
    calls.clear()
    diagnostics(state.model, state.heads, state.corpus.val, 32, count=512, tokens_per_batch=128, progress=report)
    assert calls == [(4, 16), (8, 16), (12, 16), (16, 16)]
