"""A study as read from its folder: the plan, the results of its runs so far, and their comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jepamba.errors import UserError
from jepamba.study.compare import MEASURES, Measure, Pair, compare, time_pairs
from jepamba.study.plan import Plan, load_plan
from jepamba.study.records import Result, planned_runs, read_result
from jepamba.study.statistics import Difference, paired_difference


@dataclass(frozen=True)
class Comparison:
    """A configuration compared with the baseline by one measure."""

    name: str
    measure: Measure
    pairs: tuple[Pair, ...]
    difference: Difference | None
    """BPB of the configuration − BPB of the baseline; None without pairs."""


@dataclass(frozen=True)
class Study:
    """A study, possibly unfinished: its plan, its results so far and their comparisons."""

    plan: Plan
    results: list[Result]
    comparisons: list[Comparison]


def read_study(out: Path) -> Study:
    """Read the study in the folder `out`.

    Raises: `UserError` if there is none, if a record is of a run with other settings, and if finished runs had other
    text.
    """
    if not (out / "plan.toml").is_file():
        raise UserError(f"{out}: no study here (no plan.toml); start one with `jepamba study run PLAN --out {out}`")
    plan = load_plan(out / "plan.toml")
    found = [result for run in planned_runs(plan, out) if (result := read_result(run)) is not None]
    _check_same_text(found)
    by_name = {
        item.name: {result.seed: result for result in found if result.name == item.name} for item in plan.configurations
    }
    comparisons = []
    for measure in MEASURES:
        for name, runs in by_name.items():
            if name != plan.baseline and not (measure == "time" and name == plan.time_baseline):
                pairs = _pairs(plan, by_name, runs, measure)
                difference = paired_difference(
                    {pair.seed: pair.value for pair in pairs}, {pair.seed: pair.baseline for pair in pairs}
                )
                comparisons.append(Comparison(name, measure, tuple(pairs), difference))
    return Study(plan, found, comparisons)


def _pairs(
    plan: Plan, by_name: Mapping[str, Mapping[int, Result]], runs: Mapping[int, Result], measure: Measure
) -> list[Pair]:
    """Return the pairs of the runs and the baseline of their seed, as far as one version of jepamba trained both."""
    baseline = by_name[plan.baseline]
    same = _of_same_program(runs, baseline)
    if measure == "time" and plan.time_baseline:
        longer = _of_same_program(by_name[plan.time_baseline], baseline)
        pairs = []
        # Versions may differ in speed, so each has ratios of its own.
        for program in {run.program for run in baseline.values()}:
            of_program = {seed: run for seed, run in baseline.items() if run.program == program}
            pairs += time_pairs(same, of_program, longer)
        return sorted(pairs, key=lambda pair: pair.seed)
    return [pair for seed in sorted(same) if (pair := compare(same[seed], baseline[seed], measure)) is not None]


def same_program(run: Result, baseline: Result) -> bool:
    """Whether one version of jepamba trained both runs, as far as it is known: that of an unfinished run is not.

    Runs of one seed in two versions may differ by as much as runs of two seeds.
    """
    return run.summary is None or baseline.summary is None or run.program == baseline.program


def _of_same_program(runs: Mapping[int, Result], baseline: Mapping[int, Result]) -> dict[int, Result]:
    """Return the runs whose program is that of the baseline's run with the same seed."""
    return {seed: run for seed, run in runs.items() if seed in baseline and same_program(run, baseline[seed])}


def _check_same_text(found: Sequence[Result]) -> None:
    """Raise `UserError` if two finished runs, perhaps of two machines, had other text."""
    texts: dict[tuple[Any, Any], Result] = {}
    for result in found:
        if result.summary is not None:
            plain = result.summary.get("bpb_plain") or {}
            texts.setdefault((result.summary.get("train_tokens"), plain.get("bytes")), result)
    if len(texts) > 1:
        (a, first), (b, other) = list(texts.items())[:2]
        raise UserError(
            f"{first.name}, seed {first.seed} and {other.name}, seed {other.seed} had other text: {a[0]} and {b[0]} "
            f"training tokens, {a[1]} and {b[1]} validation bytes; keep the records of one text in this folder"
        )
