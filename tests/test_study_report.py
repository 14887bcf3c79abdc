"""The report of a study: its pairs, the step and the second of their comparison, and the verdicts."""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import tomli_w

from jepamba.config import Run, flatten, to_dict
from jepamba.config.train import DIALLED
from jepamba.errors import UserError
from jepamba.study.compare import compare
from jepamba.study.plan import load_plan, parse_plan
from jepamba.study.records import Result, planned_runs, read_record, write_record
from jepamba.study.report import as_json, report_study
from jepamba.study.results import read_study
from jepamba.study.run import _with_choices
from jepamba.study.tables import ANOTHER_PROGRAM

PLAN: dict[str, Any] = {
    "name": "small",
    "question": "Is b better than a?",
    "preset": "quick",
    "seeds": [1, 2, 3],
    "baseline": "a",
    "run": [{"name": "a"}, {"name": "b", "settings": {"jepa.weight": 0.0}}],
    "settings": {"train.steps": 40},
}


def val(step: int, seconds: float, bpb: float, size: int = 1000) -> dict[str, Any]:
    return {"kind": "val", "step": step, "seconds": seconds, "bpb": bpb, "bytes": size, "tokens": size // 3}


def write(out: Path, name: str, seed: int, vals: list[dict[str, Any]], calibrated: float | None = None) -> None:
    folder = out / name / f"seed-{seed}"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in vals))
    if calibrated is not None:
        summary = {
            "bpb_plain": {"bpb": calibrated + 0.01},
            "bpb_calibrated": {"bpb": calibrated},
            "steps": 40,
            "seconds": 8.0,
            "parameters": {"kept": 1000},
            "artifact_bytes": 700,
        }
        (folder / "summary.json").write_text(json.dumps(summary))


def study(out: Path, seeds: tuple[int, ...] = (1, 2, 3)) -> Path:
    """b is 0.1 BPB better at every step and takes twice the time."""
    out.mkdir(exist_ok=True)
    (out / "plan.toml").write_text(tomli_w.dumps(PLAN))
    for seed in seeds:
        noise = 0.01 * seed
        write(out, "a", seed, [val(s, s * 0.1, 3 - s / 40 + noise) for s in (10, 20, 30, 40)], 2.0 + noise)
        write(out, "b", seed, [val(s, s * 0.2, 2.9 - s / 40 + noise * 1.1) for s in (10, 20, 30, 40)], 1.9 + noise)
    return out


def found(out: Path, measure: str) -> dict[str, Any]:
    (item,) = [item for item in as_json(read_study(out))["comparisons"] if item["measure"] == measure]
    return item


def test_equal_steps(tmp_path: Path) -> None:
    item = found(study(tmp_path / "s"), "steps")
    assert item["n"] == 3
    assert item["difference"] == pytest.approx(-0.098)
    assert item["verdict"] == "lower"
    assert [pair["at"] for pair in item["pairs"]] == [40.0] * 3


def test_equal_time_compares_at_the_last_second_that_both_reached(tmp_path: Path) -> None:
    # a ends at 4 s; b has then done 20 of its 40 steps.
    item = found(study(tmp_path / "s"), "time")
    assert [pair["at"] for pair in item["pairs"]] == [4.0] * 3
    assert item["pairs"][0]["value"] == pytest.approx(2.9 - 20 / 40 + 0.011)
    assert item["verdict"] == "higher"


def test_a_study_from_before_a_setting_joined_the_dial_is_reported_and_continued(tmp_path: Path) -> None:
    """Its plan.toml and its records lack `data.vocab`, which was the default then."""
    choices = {name: value for name, value in flatten(to_dict(Run())).items() if name in DIALLED}
    old = {name: value for name, value in choices.items() if name != "data.vocab"}
    plan = parse_plan({**PLAN, "preset": "best", "settings": {**PLAN["settings"], **old}}, "old")
    (tmp_path / "plan.toml").write_text(tomli_w.dumps(plan.to_dict()))
    chosen = plan.with_common({"data.vocab": 8192})
    for run in planned_runs(chosen, tmp_path):
        write(tmp_path, run.name, run.seed, [val(40, 4.0, 2.0)], 2.0 + 0.01 * run.seed)
        write_record(run, 9.0)
    assert "train.dial" not in (tmp_path / "a/seed-1.json").read_text()
    assert found(tmp_path, "artifact")["n"] == 3
    report_study(tmp_path)
    continued = _with_choices(load_plan(tmp_path / "plan.toml"), tmp_path)
    assert continued.settings == chosen.settings
    assert all(read_record(run) for run in planned_runs(continued, tmp_path))
    # What the plan does give must still be what was run.
    other = plan.with_common({"quant.bits": 5})
    with pytest.raises(UserError, match=r"has quant\.bits = 4, but the plan has 5"):
        read_record(planned_runs(other, tmp_path)[0])


def test_equal_time_is_interpolated() -> None:
    a = Result("a", 1, {1000: [(10, 1.0, 3.0), (20, 2.0, 2.0)]}, None)
    b = Result("b", 1, {1000: [(10, 1.5, 3.0), (20, 3.5, 1.0)]}, None)
    pair = compare(b, a, "time")
    assert pair is not None
    assert (pair.at, pair.value, pair.baseline) == (2.0, 2.5, 2.0)
    d = Result("d", 1, {1000: [(10, 1.5, 3.0), (20, 2.0, 1.5), (21, 2.0, 1.0)]}, None)
    pair = compare(d, a, "time")
    assert pair is not None
    assert (pair.at, pair.value, pair.baseline) == (2.0, 1.0, 2.0)
    # The first validation of c is later than the last of a.
    c = Result("c", 1, {1000: [(10, 2.5, 3.0), (20, 3.5, 1.0)]}, None)
    assert compare(c, a, "time") is None


def test_validations_of_different_text_are_not_compared() -> None:
    # Whole validation only at the end, at different steps and seconds; a part of the text on the way.
    a = Result("a", 1, {100: [(10, 1.0, 3.0), (20, 2.0, 2.5)], 1000: [(30, 3.0, 2.2)]}, None)
    b = Result("b", 1, {100: [(10, 2.0, 2.8), (20, 4.0, 2.3)], 1000: [(25, 5.0, 2.1)]}, None)
    steps, time = compare(b, a, "steps"), compare(b, a, "time")
    assert steps is not None
    assert time is not None
    assert (steps.at, steps.value, steps.baseline) == (20.0, 2.3, 2.5)
    assert (time.at, time.value, time.baseline) == (2.0, 2.8, 2.5)
    c = Result("c", 1, {7: [(30, 3.0, 1.0)]}, None)
    assert compare(c, a, "steps") is None
    assert compare(c, a, "time") is None
    assert compare(c, a, "artifact") is None


def test_the_ends_of_one_budget_in_seconds_are_the_same_time() -> None:
    a = Result("a", 1, {100: [(10, 1.0, 3.0), (20, 9.0, 2.5)], 1000: [(22, 10.0, 2.2)]}, None)
    b = Result("b", 1, {100: [(10, 2.0, 2.8), (15, 8.0, 2.3)], 1000: [(18, 10.05, 2.1)]}, None)
    pair = compare(b, a, "time")
    assert pair is not None
    assert (pair.at, pair.value, pair.baseline) == (10.0, 2.1, 2.2)


LONGER = {
    **PLAN,
    "time_baseline": "a-longer",
    "rule": "b is better if its interval at equal time is below 0.",
    "cost": "none",
    "run": [{"name": "a"}, {"name": "a-longer", "settings": {"train.steps": 80}}, PLAN["run"][1]],
}


def finish(out: Path, name: str, seed: int, step_seconds: float, steps: int, plain: float, carried: float) -> None:
    """A finished run, whose first step waits 50 s for a compilation."""
    folder = out / name / f"seed-{seed}"
    folder.mkdir(parents=True)
    records = [{"kind": "step", "step": i, "seconds": 50 + step_seconds * i} for i in range(1, steps + 1)]
    records.append({**val(steps, records[-1]["seconds"], plain), "final": True})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    scores = {"bpb_plain": plain, "bpb_calibrated": plain, "bpb_carried": carried}
    summary = {key: {"bpb": bpb, "bytes": 1000} for key, bpb in scores.items()} | {"steps": steps, "train_tokens": 5}
    (folder / "summary.json").write_text(json.dumps(summary))


def longer_study(out: Path, step_seconds: float = 0.2) -> Path:
    """At 40 steps b is 0.1 better than a, and takes `step_seconds` instead of 0.1. a with 80 steps is 0.2 better."""
    out.mkdir()
    (out / "plan.toml").write_text(tomli_w.dumps(LONGER))
    for seed in (1, 2, 3):
        noise = 0.01 * seed
        finish(out, "a", seed, 0.1, 40, 2.1 + noise, 2.0 + noise)
        finish(out, "a-longer", seed, 0.1, 80, 1.9 + noise, 1.8 + noise)
        finish(out, "b", seed, step_seconds, 40, 2.0 + noise, 1.9 + noise * 1.1)
    return out


@pytest.mark.parametrize(
    ("step_seconds", "baseline"), [(0.1, 2.01), (0.2, 1.81), (0.1 * 2**0.5, 1.91), (0.1 * 2**1.24, 1.762)]
)
def test_a_time_baseline_gives_the_baseline_at_the_time_of_each_configuration(
    tmp_path: Path, step_seconds: float, baseline: float
) -> None:
    comparisons = as_json(read_study(longer_study(tmp_path / "s", step_seconds)))["comparisons"]
    (item,) = [item for item in comparisons if item["measure"] == "time"]
    assert item["configuration"] == "b"
    assert item["n"] == 3
    assert item["pairs"][0]["baseline"] == pytest.approx(baseline, abs=1e-9)
    assert item["pairs"][0]["value"] == pytest.approx(1.911)
    # The first step, which waited for a compilation, counts as one of the others.
    assert item["pairs"][0]["at"] == pytest.approx(40 * step_seconds)


@pytest.mark.parametrize("step_seconds", [0.08, 0.1 * 2**1.26])
def test_a_time_beyond_the_time_baseline_is_not_compared(tmp_path: Path, step_seconds: float) -> None:
    comparisons = as_json(read_study(longer_study(tmp_path / "s", step_seconds)))["comparisons"]
    assert [item["n"] for item in comparisons if item["measure"] == "time"] == [0]


def test_the_report_has_rule_cost_and_statistics_of_the_pairs(tmp_path: Path) -> None:
    out = longer_study(tmp_path / "s")
    text = report_study(out)
    assert "Rule, fixed before the runs: b is better if its interval at equal time is below 0." in text
    assert "Cost: none" in text
    assert "through `a` and `a-longer`" in text
    carried = text.partition("## Finished artifacts, state carried")[2]
    # Differences of −0.099, −0.098 and −0.097: t = −169.7, and 2 of 8 choices of signs.
    assert (
        "| b | 1.9220 | 2.0200 | -0.0980 | [-0.1005, -0.0955] | 3 | lower | 0.0010 | 3.5e-05 | 0.25 | 0.0033 | 4 |"
        in carried
    )
    (item,) = [
        i for i in as_json(read_study(out))["comparisons"] if (i["measure"], i["configuration"]) == ("carried", "b")
    ]
    assert item["sd"] == pytest.approx(0.001)
    assert item["smallest_effect"] == pytest.approx(0.00326, abs=1e-5)
    assert item["pairs_for_half_width"] == 4
    rows = (out / "runs.csv").read_text().splitlines()
    assert rows[1] == "small,a,1,40 steps,40,,4,2.11,2.01,"
    assert len(rows) == 10


def test_runs_of_other_text_are_refused(tmp_path: Path) -> None:
    out = longer_study(tmp_path / "s")
    path = out / "b/seed-2/summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"train_tokens": 6}))
    with pytest.raises(UserError, match="b, seed 2 had other text: 5 and 6 training tokens, 1000 and 1000 validation"):
        read_study(out)


def test_runs_whose_baseline_is_of_another_program_are_named_and_not_compared(tmp_path: Path) -> None:
    out = longer_study(tmp_path / "s")

    def set_program(name: str, program: str) -> None:
        path = out / name / "summary.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": {"program": program}}))

    for name in ("a", "a-longer", "b"):
        for seed in (1, 2):
            set_program(f"{name}/seed-{seed}", "0.2.0+1")
    assert ANOTHER_PROGRAM not in report_study(out)
    set_program("b/seed-2", "0.2.0+2")
    set_program("a/seed-3", "0.2.0+2")  # the others of seed 3 were made before programs were recorded
    assert (
        f"**{ANOTHER_PROGRAM}:** b, seed 2; a-longer, seed 3 (nor any other at equal time); b, seed 3."
        in report_study(out)
    )
    pairs = {
        (item["configuration"], item["measure"]): [pair["seed"] for pair in item["pairs"]]
        for item in as_json(read_study(out))["comparisons"]
    }
    assert pairs["b", "steps"] == pairs["b", "artifact"] == pairs["b", "time"] == [1]
    assert pairs["a-longer", "artifact"] == [1, 2]


def test_long_steps_that_measure_gradients_count(tmp_path: Path) -> None:
    """Those of `jepa.balance` are a cost of that setting; a long step that waits for a compilation is not."""
    balanced = parse_plan(
        {**PLAN, "run": [PLAN["run"][0], {"name": "b", "settings": {"jepa.weight": 0.1, "jepa.balance": 0.1}}]}, "b"
    )
    for run in planned_runs(balanced, tmp_path)[:2]:
        seconds = accumulate(9.0 if step in (0, 50, 60, 100) else 0.1 for step in range(120))
        records = [{"kind": "step", "step": step, "seconds": end} for step, end in enumerate(seconds, 1)]
        del records[9]  # a skipped step, whose time is in that of the next one
        run.folder.mkdir(parents=True)
        (run.folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        write_record(run, 50.0)
    short, balance = (json.loads(run.record_file.read_text()) for run in planned_runs(balanced, tmp_path)[:2])
    assert short["steady_seconds"] == pytest.approx(120 * 0.1)
    assert balance["steady_seconds"] == pytest.approx(118 * 0.1 + 2 * 9.0)


def test_an_unfinished_run_is_compared_although_its_program_is_unknown(tmp_path: Path) -> None:
    out = study(tmp_path / "s")
    before = {measure: found(out, measure)["n"] for measure in ("steps", "time")}
    for name in ("a", "b"):
        for seed in (1, 2, 3):
            path = out / name / f"seed-{seed}" / "summary.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": {"program": "0.2.0+1"}}))
    assert {measure: found(out, measure)["n"] for measure in ("steps", "time")} == before
    (out / "b/seed-3/summary.json").unlink()
    (out / "a/seed-2/summary.json").unlink()
    assert {measure: found(out, measure)["n"] for measure in ("steps", "time")} == before == {"steps": 3, "time": 3}


def test_each_program_has_its_own_ratios_of_time(tmp_path: Path) -> None:
    """In the version that trained seed 4, b is faster: its baseline there is read at an earlier time."""
    out = longer_study(tmp_path / "s")
    (out / "plan.toml").write_text(tomli_w.dumps({**LONGER, "seeds": [1, 2, 3, 4]}))
    finish(out, "a", 4, 0.1, 40, 2.14, 2.04)
    finish(out, "a-longer", 4, 0.1, 80, 1.94, 1.84)
    finish(out, "b", 4, 0.1 * 2**0.5, 40, 2.0, 1.9)
    for name in ("a", "a-longer", "b"):
        for seed in (1, 2, 3, 4):
            path = out / name / f"seed-{seed}" / "summary.json"
            program = {"program": "0.2.0+2" if seed == 4 else "0.2.0+1"}
            path.write_text(json.dumps(json.loads(path.read_text()) | {"environment": program}))
    (item,) = [item for item in as_json(read_study(out))["comparisons"] if item["measure"] == "time"]
    baselines = {pair["seed"]: pair["baseline"] for pair in item["pairs"]}
    assert baselines == pytest.approx({1: 1.81, 2: 1.82, 3: 1.83, 4: 1.94})


def test_the_level_of_the_plan_decides_the_verdict(tmp_path: Path) -> None:
    out = longer_study(tmp_path / "s")
    verdicts = []
    for alpha in (0.05, 1e-9):
        (out / "plan.toml").write_text(tomli_w.dumps({**LONGER, "alpha": alpha}))
        items = {(i["configuration"], i["measure"]): i for i in as_json(read_study(out))["comparisons"]}
        assert f"t test at the level {alpha:.3g}" in report_study(out)
        verdicts.append((items["b", "carried"]["verdict"], items["b", "carried"]["smallest_effect"]))
    assert [verdict for verdict, _ in verdicts] == ["lower", "no difference shown"]
    assert verdicts[1][1] > 10 * verdicts[0][1]


def test_two_seeds_are_too_few_to_call_it_a_difference(tmp_path: Path) -> None:
    out = study(tmp_path / "s", seeds=(1, 2))
    assert {found(out, measure)["verdict"] for measure in ("steps", "time", "artifact")} == {"too few pairs"}
    text = report_study(out)
    assert "**Not finished:** a, seed 3; b, seed 3." in text
    assert "lower |" not in text
    assert "higher |" not in text


def test_the_report_has_tables_pictures_and_json(tmp_path: Path) -> None:
    out = study(tmp_path / "s")
    text = report_study(out)
    assert text == (out / "report.md").read_text()
    assert "| b | 1.9200 | 2.0200 | -0.1000 | [-0.1000, -0.1000] | 3 | lower |" in text
    assert "BPB carried |" in text
    assert "Is b better than a?" in text
    assert "`jepa.weight = 0.0`" in text
    for picture in ("differences.svg", "curves.svg"):
        assert f"({picture})" in text
        assert ElementTree.parse(out / picture).getroot().tag.endswith("svg")
    assert len(json.loads((out / "report.json").read_text())["runs"]) == 6


def test_the_final_validation_of_more_text_is_in_the_picture(tmp_path: Path) -> None:
    out = study(tmp_path / "s")
    for seed in (1, 2, 3):
        with (out / "a" / f"seed-{seed}" / "metrics.jsonl").open("a") as stream:
            stream.write(json.dumps(val(42, 4.2, 1.5, 9000)) + "\n")
    report_study(out)
    described = (out / "curves.svg").read_text().partition("<desc")[2].partition("</desc>")[0]
    assert "a: from 2.77 to 2.02; a, all validation text: from 1.5 to 1.5; b: from " in described
    assert "b, all validation text" not in described


def test_a_single_pair_has_no_interval(tmp_path: Path) -> None:
    out = study(tmp_path / "s", seeds=(2,))
    item = found(out, "steps")
    assert (item["low"], item["high"], item["n"]) == (None, None, 1)
    assert "Infinity" not in json.dumps(as_json(read_study(out)), allow_nan=False)
    report_study(out)


def test_a_study_that_has_not_begun_is_reported_too(tmp_path: Path) -> None:
    text = report_study(study(tmp_path / "s", seeds=()))
    assert "no pairs" in text


def test_a_folder_without_a_study_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no study here"):
        report_study(tmp_path)
