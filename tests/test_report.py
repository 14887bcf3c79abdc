"""report.html and the page of `jepamba compare`: complete, self-contained, escaped, robust against truncated files."""

from __future__ import annotations

import hashlib
import json
import math
from base64 import b64encode
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from jepamba.cli import main
from jepamba.config import Run, with_settings
from jepamba.presets import dump_toml
from jepamba.report.charts import line_chart, standalone
from jepamba.report.html import write_report
from jepamba.report.plots import Level, Line, chart, thin
from jepamba.report.records import read_metrics

VOID = {"meta", "br", "hr", "img", "link", "input"}
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> & \ud800"
MAX_BYTES = 1_500_000


def write_run(folder: Path, steps: int = 200, finished: bool = True) -> Path:
    """A run's folder as the trainer leaves it, with plausible figures."""
    folder.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [
        {"kind": "start", "step": 0, "time": "2026-11-29T15:55:17+00:00", "command": f"jepamba train {HOSTILE}"}
    ]
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
            lines.append({"kind": "sample", "step": step, "prompt": "The ", "text": f"text at {step} {HOSTILE}"})
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
                    "diagnostics": {
                        "top1": 0.31,
                        "latents": {"of": "z"},
                        "prediction": [{"step": 1, "cosine": 0.71}, {"step": 2, "cosine": 0.62}],
                    },
                    "samples": [{"prompt": "The ", "text": f"end {HOSTILE}"}],
                    "passage": {"documents": [[["Once ", 7.5], [HOSTILE, 200.0]], [["upon", 0.5]]]},
                    "baselines": [{"compressor": "xz -9e", "bytes": 5000, "bpb": 2.358, "bpb_with_history": 2.1}],
                    "environment": {"python": "3.11", "torch": "2.13.0", "device": "cpu", "threads": 2},
                }
            )
        )
    return folder


class Checker(HTMLParser):
    """Checks that tags are balanced and ids unique, and that the page has no address, no handler, no foreign script."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.scripts: list[str] = []
        self.charts: list[dict[str, Any]] = []
        self.policy = self.text = ""

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
            if name == "content" and value is not None and "script-src" in value:
                self.policy = value
            if name == "id":
                assert value is not None
                self.ids.append(value)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            (self.charts.append(json.loads(data)) if data.startswith("{") else self.scripts.append(data))
        else:
            self.text += data


def check(path: Path) -> Checker:
    checker = Checker()
    checker.feed(path.read_text(encoding="utf-8"))
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    # Those of the package, by their hashes, and data.
    assert checker.tags.count("script") == 2 + len(checker.charts)
    for script in checker.scripts:
        assert b64encode(hashlib.sha256(script.encode()).digest()).decode() in checker.policy
    assert "default-src 'none'" in checker.policy
    assert "Permission is hereby granted" in checker.scripts[0], "the licence of uPlot"
    assert path.stat().st_size <= MAX_BYTES
    return checker


def labels(found: Checker) -> list[list[str]]:
    return [[series["label"] for series in drawn["series"]] for drawn in found.charts]


def test_a_finished_run_is_reported_whole(tmp_path: Path) -> None:
    found = check(write_report(write_run(tmp_path / "my-run")))
    for figure in (
        "my-run",
        "2026-11-29 15:55 UTC",
        "jepamba train </script>",
        "stdlib",
        "16,000 bytes held out",
        "cpu",
        "PyTorch 2.13.0",
        "1.9987",
        "2.0123",
        "812,345",
        "1,200,000",
        "300,000",
        "40 s",
        "xz -9e",
        "targets that are the most likely token",
        "0.62",
        "mlps",
        "tokenizer",
        "tokens_per_micro",
        "checkpoint <b>written</b>",
        "step 50, 10 s",
        "text at 150",
        "upon",
    ):
        assert figure in found.text, figure
    assert "{'" not in found.text, "a raw dictionary"
    assert labels(found) == [
        ["training text", "held-out text", "finished artifact, all held-out text"],
        ["cross-entropy", "latent prediction", "SIGReg"],
        ["cross-entropy", "latent prediction", "SIGReg", "all, before clipping"],
        ["Muon", "AdamW"],
        ["tokens per second"],
    ]
    main_chart = found.charts[0]
    assert main_chart["x"] == "training time (s)"
    assert main_chart["levels"] == [
        {"label": "xz -9e", "value": 2.358},
        {"label": "xz -9e with the training text", "value": 2.1},
    ]
    seconds, bpb = main_chart["series"][1]["points"]
    assert seconds == [10.0, 20.0, 30.0]
    assert bpb[0] == pytest.approx((3 + 4 * math.exp(-50 / 60) + 0.1 * math.sin(50)) / 2, rel=1e-6)
    assert found.tags.count("table") == found.tags.count("caption")


def test_text_of_the_run_cannot_become_markup(tmp_path: Path) -> None:
    run = write_run(tmp_path / HOSTILE.replace("/", "").encode(errors="replace").decode())
    found = check(write_report(run))
    shown = HOSTILE.replace("\ud800", "?")
    assert found.text.count(shown) == 1 + 4 + 1 + 1, "the command, four samples, the artifact's sample, the passage"
    assert "img" not in found.tags


def test_a_piece_of_the_passage_has_the_colour_of_its_bits(tmp_path: Path) -> None:
    page = write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")
    assert '<span class="b3" title="7.50 bits, 1.50 per byte">Once </span>' in page
    assert '<span class="b0" title="0.50 bits, 0.12 per byte">upon</span>' in page


def test_a_long_run_stays_within_the_size_limit(tmp_path: Path) -> None:
    write_report(write_run(tmp_path / "run", steps=20_000))
    check(tmp_path / "run/report.html")


def test_a_run_in_progress_shows_its_curves(tmp_path: Path) -> None:
    found = check(write_report(write_run(tmp_path / "run", finished=False)))
    assert "no summary yet" in found.text
    assert "step 200" in found.text
    assert "BPB at the last validation" in found.text
    assert labels(found)[0] == ["training text", "held-out text", "finished artifact, all held-out text"]


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
        '{"passage": {"documents": [3, [7, ["a"], ["", 1], ["b", null]]]}, "diagnostics": {"prediction": [1]}}',
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


def test_a_picture_is_an_svg_file_for_light_and_dark(tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    picture = standalone(line_chart("Loss", "step", "BPB", [Line("a", [(0, 2.0), (1, 1.0)])]))
    path.write_text(picture, encoding="utf-8")
    root = ElementTree.parse(path).getroot()
    assert root.tag.endswith("svg")
    assert "prefers-color-scheme: dark" in picture
    assert "#0000" not in picture


def test_training_bits_per_byte_are_exact(tmp_path: Path) -> None:
    lines = [
        {"kind": "step", "step": 1, "ce": math.log(2) * 3, "tokens": 100, "bytes": 200, "seconds": 1.0},
        {"kind": "step", "step": 2, "ce": math.log(2) * 2, "tokens": 200, "bytes": 600, "seconds": 2.0},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert check(write_report(tmp_path)).charts[0]["series"][0]["points"] == [[1.0, 2.0], [1.5, 0.5]]


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


def test_a_clipped_axis_leaves_out_the_start_and_keeps_every_level() -> None:
    points = [(float(x), 9.0 if x == 0 else 2.0) for x in range(100)]
    for level, top in ((1.0, 2.0), (3.0, 3.0)):
        figure = chart("t", "x", "y", [Line("a", points)], levels=[Level("l", level)], clip=True)
        assert json.loads(figure.partition('json">')[2].partition("</script>")[0])["top"] == top


def test_runs_are_compared_on_one_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / "a"), write_run(tmp_path / "b", steps=120, finished=False)]
    (runs[1] / "config.toml").write_text(dump_toml(with_settings(Run(), {"optim.muon_lr": 0.5})))
    out = tmp_path / "page.html"
    assert main(["compare", *map(str, runs), "-o", str(out), "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [(run["run"], run["finished"], run["bpb_calibrated"], run["steps"]) for run in printed["runs"]] == [
        ("a", True, 1.9987, 200),
        ("b", False, None, 120),
    ]
    found = check(out)
    assert labels(found)[0] == ["a", "a, finished", "b"]
    assert found.charts[0]["levels"][0]["label"] == "xz -9e"
    differing = found.text.partition("Settings that differ")[2].partition("What the finished")[0]
    assert "optim.muon_lr" in differing
    assert "adam_lr" not in differing
    assert found.text.count("end " + HOSTILE.replace("\ud800", "?")) == 1
    assert "different texts" not in found.text
    assert main(["compare", *map(str, runs), "-o", str(out)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["BPB  plain windows", "a           1.9987"]
    assert main(["compare", str(tmp_path), "-o", str(out)]) == 2
    assert "no run here" in capsys.readouterr().err


def test_scores_of_different_texts_are_not_compared_in_silence(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / name) for name in "ab"]
    summary = json.loads((runs[1] / "summary.json").read_text())
    summary["bpb_plain"]["bytes"] += 1
    (runs[1] / "summary.json").write_text(json.dumps(summary))
    assert main(["compare", *map(str, runs), "-o", str(tmp_path / "page.html")]) == 0
    found = check(tmp_path / "page.html")
    assert "scored on different texts" in found.text
    assert found.charts[0]["levels"] == []


def test_a_score_of_other_text_than_the_others_is_marked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / name) for name in "abc"]
    plain = {"bpb": 2.0, "tokens": 300, "bytes": 1000, "counted": "original", "reset": True}
    sliding = {**plain, "bpb": 1.75}
    scores = [
        {"bpb_calibrated": plain, "bpb_sliding": sliding},
        {
            "bpb_calibrated": {**plain, "tokens": 250, "bpb": 1.875},
            "bpb_sliding": {**sliding, "tokens": 60, "bytes": 200},
        },
        {"bpb_calibrated": {**plain, "bytes": 1001}, "bpb_sliding": None},
    ]
    for run, changed in zip(runs, scores, strict=True):
        summary = json.loads((run / "summary.json").read_text())
        (run / "summary.json").write_text(json.dumps({**summary, **changed}))
    words = ["compare", *map(str, runs), "-o", str(tmp_path / "page.html")]
    assert main([*words, "--json"]) == 0
    assert [run["differs"] for run in json.loads(capsys.readouterr().out)["runs"]] == [
        {"bpb_sliding": "300 tokens, 1,000 bytes"},
        {"bpb_sliding": "60 tokens, 200 bytes"},
        {"bpb_calibrated": "300 tokens, 1,001 bytes"},
    ]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["BPB", "plain", "windows", "sliding", "windows"],
        ["a", "2.0000", "1.7500*"],
        ["b", "1.8750", "1.7500*"],
        ["c", "2.0000*", "–"],
    ]
    assert "b, sliding windows: 60 tokens, 200 bytes" in lines
    assert any(line.startswith("Scores of different kinds do not compare") for line in lines)
    page = check(tmp_path / "page.html")
    assert "1.7500*" in page.text
    assert "c, plain windows: 300 tokens, 1,001 bytes" in page.text
    # Another stride is another measure of the same text.
    (runs[1] / "summary.json").write_text(json.dumps({**summary, **scores[0]}))
    (runs[1] / "config.toml").write_text(dump_toml(with_settings(Run(), {"eval.stride": 16})))
    assert main([*words[:3], *words[4:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["runs"][1]["differs"] == {
        "bpb_sliding": "300 tokens, 1,000 bytes, stride 16"
    }
