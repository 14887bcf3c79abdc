"""report.html: complete, self-contained, escaped, and robust against truncated files."""

from __future__ import annotations

import json
import math
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from jepamba.config import Run
from jepamba.presets import dump_toml
from jepamba.report.charts import Line, line_chart, standalone, thin
from jepamba.report.html import _bpb_chart, write_report
from jepamba.report.records import read_metrics

VOID = {"meta", "br", "hr", "img", "link", "input"}


def write_run(folder: Path, steps: int = 200, finished: bool = True) -> Path:
    """A run's folder as the trainer leaves it, with plausible figures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        ce = 3 + 4 * math.exp(-step / 60) + 0.1 * math.sin(step)
        lines.append(
            {
                "kind": "step",
                "step": step,
                "loss": ce + 0.3,
                "ce": ce,
                "z_loss": 90.0,
                "jepa": 1 / step,
                "sigreg": 0.2,
                "lambda": 0.09,
                "grad_norm": 1 + 5 / step,
                "lr_scale": 1.0,
                "muon_lr": 0.02,
                "adam_lr": 0.01,
                "muon_momentum": 0.9,
                "tokens": 4096 * step,
                "epoch": step / 50,
                "seconds": 0.2 * step,
                "tokens_per_s": 20000 + 100 * math.sin(step),
                "memory_mb": 700,
                "bytes": 13000 * step,
            }
        )
        if step % 50 == 0:
            lines.append({"kind": "terms", "step": step, "grad_ce": 1.0, "grad_jepa": 0.1, "grad_sigreg": 0.01})
            lines.append(
                {
                    "kind": "val",
                    "step": step,
                    "seconds": 0.2 * step,
                    "bpb": ce / 2,
                    "nats_per_token": ce,
                    "tokens": 5000,
                    "bytes": 16000,
                    "mode": "plain",
                    "final": step == steps,
                }
            )
    lines.append({"kind": "event", "step": 100, "what": "checkpoint <b>written</b>"})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "config.toml").write_text(dump_toml(Run()))
    if finished:
        score = {
            "bpb": 2.0123,
            "nats_per_token": 3.1,
            "tokens": 5000,
            "bytes": 16000,
            "mode": "plain",
            "temperature": 1.0,
        }
        (folder / "summary.json").write_text(
            json.dumps(
                {
                    "preset": "quick",
                    "steps": steps,
                    "seconds": 40.0,
                    "tokens": 819200,
                    "bpb_plain": score,
                    "bpb_calibrated": {**score, "bpb": 1.9987},
                    "bpb_sliding": None,
                    "temperature": 0.94,
                    "artifact_bytes": 812345,
                    "parameters": {
                        "kept": 1_200_000,
                        "training_only": 300_000,
                        "parts": {"embedding": 98_304, "mixers": 700_000, "mlps": 401_696},
                    },
                    "bytes_by_part": {"embedding": 90_000, "mixers": 400_000, "mlps": 300_000, "tokenizer": 22_345},
                    "diagnostics": {"latent_cosine": 0.71, "top1": 0.31, "probe": {"accuracy": 0.4}},
                    "samples": [{"prompt": "The ", "text": "The <script>alert(1)</script> & co \ud800"}],
                    "baselines": [{"compressor": "xz -9e", "bytes": 5000, "bpb": 2.358, "bpb_with_history": 2.1}],
                    "environment": {"python": "3.11", "torch": "2.13.0", "device": "cpu", "threads": 2},
                }
            )
        )
    return folder


class Checker(HTMLParser):
    """Checks that tags are balanced, ids are unique, and the page has no external resources and no scripts."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        self._attributes(tag, attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._attributes(tag, attrs)

    def _attributes(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            assert not name.startswith("on"), (tag, name)
            if name in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("#"), (tag, name, value)
            if name == "id":
                assert value is not None
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def check(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    assert "script" not in checker.tags
    return checker


def test_a_finished_run_is_reported_whole(tmp_path: Path) -> None:
    found = check(write_report(write_run(tmp_path / "run")))
    for figure in (
        "1.9987",
        "2.0123",
        "812,345",
        "1,200,000",
        "300,000",
        "40 s",
        "xz -9e",
        "latent_cosine",
        "2.13.0",
        "mlps",
        "tokenizer",
        "tokens_per_micro",
        "checkpoint <b>written</b>",
    ):
        assert figure in found.text, figure
    for title in (
        "Bits per byte",
        "Cross-entropy (nats per token)",
        "Latent prediction (MSE)",
        "SIGReg",
        "Throughput",
        "Gradient norm of each term",
        "Gradient norm before clipping",
        "Learning rates",
        "Memory",
    ):
        assert title in found.text, title
    assert found.tags.count("svg") == found.tags.count("desc") == found.tags.count("figure") - 1
    assert found.tags.count("table") == found.tags.count("caption")


def test_samples_cannot_become_markup(tmp_path: Path) -> None:
    found = check(write_report(write_run(tmp_path / "run")))
    assert "<script>alert(1)</script> & co" in found.text


def test_a_run_in_progress_shows_its_curves(tmp_path: Path) -> None:
    found = check(write_report(write_run(tmp_path / "run", finished=False)))
    assert "no summary yet" in found.text
    assert "step 200" in found.text
    assert "BPB at the last validation" in found.text
    assert "Throughput" in found.text


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", finished=False)
    path = run / "metrics.jsonl"
    path.write_bytes(
        path.read_bytes() + b'{"kind": "step", "step": 201, "lo\n\xff\xfe\n[1]\n{"kind": "step", "step": "x"}\n'
    )
    assert read_metrics(path).broken == 4
    assert "4 lines of metrics.jsonl are incomplete" in check(write_report(run)).text


@pytest.mark.parametrize(
    "summary",
    [
        "{",
        '{"bpb_plain": 3, "samples": 7, "parameters": [], "baselines": {}}',
        *(pytest.param(text, marks=pytest.mark.slow) for text in ("", "[]")),
    ],
)
def test_a_broken_summary_breaks_nothing(tmp_path: Path, summary: str) -> None:
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text(summary)
    (run / "config.toml").write_text("[[[")
    check(write_report(run))


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert "step 0" in check(write_report(tmp_path)).text


def test_values_that_are_no_numbers_are_left_out(tmp_path: Path) -> None:
    lines = [
        '{"kind": "step", "step": 1, "loss": NaN, "ce": Infinity, "grad_norm": "x", "tokens_per_s": null}',
        '{"kind": "step", "step": 2, "loss": 2.5, "ce": -1, "grad_norm": 0, "tokens": 10, "bytes": 20}',
        '{"kind": "val", "step": 2, "bpb": {}, "seconds": 1}',
    ]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    check(write_report(tmp_path))


def test_a_step_taken_twice_counts_once(tmp_path: Path) -> None:
    lines = [{"kind": "step", "step": s, "loss": loss} for s, loss in ((1, 5.0), (2, 4.0), (2, 3.0), (3, 2.0))]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert [record["loss"] for record in read_metrics(tmp_path / "metrics.jsonl").steps] == [5.0, 3.0, 2.0]


def test_the_report_is_the_same_each_time(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    first = write_report(run).read_bytes()
    assert write_report(run).read_bytes() == first


def test_the_loss_picture_is_an_svg_file_for_light_and_dark(tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    picture = standalone(_bpb_chart(read_metrics(write_run(tmp_path / "run") / "metrics.jsonl")))
    path.write_text(picture, encoding="utf-8")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in picture
    assert "#0000" not in picture


def test_training_bits_per_byte_are_exact(tmp_path: Path) -> None:
    lines = [
        {"kind": "step", "step": 1, "ce": math.log(2) * 3, "tokens": 100, "bytes": 200},
        {"kind": "step", "step": 2, "ce": math.log(2) * 2, "tokens": 200, "bytes": 600},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "training: from 1.5 to 0.5" in _bpb_chart(read_metrics(tmp_path / "metrics.jsonl"))


def test_thinning_keeps_the_ends_and_the_mean() -> None:
    points = [(float(i), float(i % 7)) for i in range(10_000)]
    thinned = thin(points, 100)
    assert len(thinned) == 100
    assert thinned[0] == points[0]
    assert thinned[-1] == points[-1]
    assert sum(y for _, y in thinned) / 100 == pytest.approx(3.0, abs=0.1)
    assert [x for x, _ in thinned] == sorted(x for x, _ in thinned)


def test_a_logarithmic_axis_is_not_used_for_zeros() -> None:
    svg = line_chart("Norms", "step", "norm", [Line("a", [(0, 0.0), (1, 10.0)])], log_y=True)
    ElementTree.fromstring(svg)
