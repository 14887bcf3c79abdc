"""The folder of a submission to the 16 MB challenge: results, log, artifact, and the script that makes and scores it.

Two accepted folders of the challenge were the model: the naive baseline, and "SP8192 + 3-Layer Recurrence" of 9 April.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jepamba import __version__
from jepamba.artifact.inspect import LIMIT_BYTES
from jepamba.config import MACHINE_SETTINGS, Run, flatten, to_dict, with_settings
from jepamba.data import Tokens, write_shard
from jepamba.errors import UserError
from jepamba.folder_lock import new_folder
from jepamba.hub_names import HUB
from jepamba.io import check_writable, sha256_of
from jepamba.presets import dump_toml, load_preset
from jepamba.progress import Progress
from jepamba.report.records import Metrics, read_metrics, read_summary
from jepamba.submission.bundle import REQUIRED, bundle
from jepamba.submission.program import score_lines, size_lines, step_line
from jepamba.submission.readme import readme
from jepamba.submission.scoring import TOLERANCE
from jepamba.train.init_from import run_corpus

SCRIPT, CLAIMS, VALIDATION = "train_gpt.py", "submission.json", "text_val_000000.bin"
PACKAGES = {"ans": "constriction", "brotli": "brotli", "quick pass": "zstandard", "packing": "threadpoolctl"}
"""Packages of the codecs that the standard library lacks, and two of packing, which tries all codecs. Scoring needs
only those of the artifact's codecs."""
TRAIN_SECONDS = 600
"""The challenge's limit, on 8 × H100."""
NOT_TRAINED = (*MACHINE_SETTINGS, "train.track", "train.keep_heads", "eval.prompts", "train.device")
"""Settings that the script does not take from the run: paths, what it does not write, and the device."""


@dataclass(frozen=True)
class About:
    """Facts that only the author knows."""

    name: str = ""
    author: str = ""
    github_id: str = ""
    date: str = ""
    blurb: str = ""


def write_submission(run_dir: Path, out: Path, about: About, *, packed: bool = False, validation: bool = False) -> Path:
    """Write the folder `out` from the finished run in `run_dir`, and return `out`.

    Arguments:
        packed: Compress the code of the script. It is compressed too if it would not fit otherwise.
        validation: Add the validation tokens as a shard.

    Raises `UserError`, without a partial folder, for an unfinished run, an artifact that does not match the summary of
    the run, an existing folder, and more than 16,000,000 bytes of code and model.
    """
    summary, metrics = read_summary(run_dir), read_metrics(run_dir / "metrics.jsonl")
    artifact = run_dir / "artifact.jepa"
    if summary is None or not artifact.exists():
        raise UserError(f"{run_dir}: no finished run here; `jepamba resume {run_dir}` finishes one")
    if os.path.exists(out):
        raise UserError(f"{out} already exists; choose another folder, or delete it")
    check_writable(out)
    run = load_preset(str(run_dir / "config.toml"))
    headline = _headline(summary)
    _check_artifact(artifact, summary)
    model_bytes = artifact.stat().st_size
    script = _script(headline, run, packed).encode("utf-8")
    if len(script) + model_bytes > LIMIT_BYTES:
        packed, script = True, _script(headline, run, True).encode("utf-8")
    if len(script) + model_bytes > LIMIT_BYTES:
        raise UserError(_too_large(model_bytes, len(script)))
    claims = _claims(about, run, summary, headline, len(script), model_bytes)
    with new_folder(out) as building:
        (building / SCRIPT).write_bytes(script)
        shutil.copyfile(artifact, building / artifact.name)
        (building / CLAIMS).write_text(json.dumps(claims, indent=1) + "\n", encoding="utf-8")
        (building / "README.md").write_text(
            readme(claims, run, summary, packed, VALIDATION if validation else ""), encoding="utf-8"
        )
        (building / "train.log").write_text(_log(metrics, run, claims, headline), encoding="utf-8")
        needed = "".join(f"{name}\n" for name in [*sorted(REQUIRED), *sorted(PACKAGES.values())])
        (building / "requirements.txt").write_text(needed, encoding="utf-8")
        (building / "config.toml").write_text(dump_toml(_without_paths(run)), encoding="utf-8")
        if validation:
            write_validation(run, building / VALIDATION)
    return out


def check(out: Path, run_dir: Path) -> dict[str, Any]:
    """Run the script of the submission `out` on the validation tokens of the run, and return its output.

    The script runs in a separate process without this package and the environment variables. Raises `UserError` if it
    does not reproduce the claimed score.
    """
    run = load_preset(str(run_dir / "config.toml"))
    with tempfile.TemporaryDirectory() as name, Progress("scoring with the submission's own script"):
        shard = out / VALIDATION
        if not shard.exists():
            shard = Path(name, VALIDATION)
            write_validation(run, shard)
        command = [sys.executable, "-I", str((out / SCRIPT).resolve()), "--score", "--data", str(shard.resolve())]
        done = subprocess.run(command, cwd=name, capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"{out / SCRIPT} does not reproduce the claimed score: {' '.join(done.stderr.split())[-400:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return {**found, "within": TOLERANCE}


def write_validation(run: Run, path: Path) -> None:
    """Write the validation tokens of `run` as one shard at `path`."""
    with Progress("reading the text") as report:
        tokens: Tokens = run_corpus(run, report).val
    write_shard(path, tokens.read(0, len(tokens)))


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Return the score to claim: sliding windows if they covered the whole text, else plain windows; calibrated.

    The challenge counts decoded bytes. Raises `UserError` if they are known to differ from the original text.
    """
    try:
        calibrated, sliding = summary["bpb_calibrated"], summary["bpb_sliding"]
        whole = sliding is not None and sliding["tokens"] == calibrated["tokens"]
        chosen = sliding if whole else calibrated
        headline = {
            key: chosen[key] for key in ("bpb", "nats_per_token", "tokens", "bytes", "mode", "temperature", "seconds")
        }
        decoded, lost = chosen.get("decoded_bytes", headline["bytes"]), chosen.get("unrestored_bytes")
    except (KeyError, TypeError):
        raise UserError("summary.json does not belong to a finished run; `jepamba resume` rewrites it") from None
    if lost or decoded != headline["bytes"]:
        number = "some" if lost is None else f"{lost:,}"
        raise UserError(
            f"the tokenizer cannot restore {number} of the {headline['bytes']:,} bytes of"
            f" the validation text, and decodes {decoded:,}: bits per decoded byte, which the challenge counts, are no"
            " figure of this text; train with a tokenizer that restores it, or on the shards of the challenge"
        )
    return headline


def _check_artifact(artifact: Path, summary: Mapping[str, Any]) -> None:
    """Raise `UserError` if the summary is of another artifact, by sha256, or by size in summaries without a sha256."""
    if "artifact_sha256" in summary:
        key, found = "artifact_sha256", sha256_of(artifact, "the artifact")
    else:
        key, found = "artifact_bytes", str(artifact.stat().st_size)
    if str(summary.get(key)) != found:
        raise UserError(
            f"{artifact}: summary.json describes another artifact: its {key} is {found}, that in summary.json is "
            f"{summary.get(key)}; restore the artifact of the run (`jepamba resume` exports it from a checkpoint)"
        )


def _script(headline: Mapping[str, Any], run: Run, packed: bool) -> str:
    stride = int(headline["mode"].removeprefix("sliding-")) if headline["mode"].startswith("sliding-") else 0
    defaults = flatten(to_dict(Run()))
    settings = {
        name: value
        for name, value in flatten(to_dict(run)).items()
        if name not in NOT_TRAINED and (value != defaults[name] or name.startswith("train."))
    }
    needs = ", ".join([*sorted(REQUIRED), *sorted(PACKAGES.values())])
    comment = (
        f"# Trains and scores: torchrun --standalone --nproc_per_node=8 {SCRIPT} --data FOLDER_OF_SHARDS\n"
        f"# Scores artifact.jepa beside it: python {SCRIPT} --score --data FOLDER_OF_SHARDS\n"
        f"# Needs {needs}. Made by jepamba {__version__} from its own source, one section per module."
    )
    return bundle("jepamba.submission.program", "main", f"__file__, {stride}, {settings!r}", comment, packed)


def _too_large(model_bytes: int, code_bytes: int) -> str:
    total = code_bytes + model_bytes
    return (
        f"the submission would have {total:,} bytes ({model_bytes:,} of model, {code_bytes:,} of compressed code), "
        f"{total - LIMIT_BYTES:,} over the limit of {LIMIT_BYTES:,}; train with quant.budget_bytes = "
        f"{LIMIT_BYTES - code_bytes:,}"
    )


def _claims(
    about: About, run: Run, summary: Mapping[str, Any], headline: Mapping[str, Any], code_bytes: int, model_bytes: int
) -> dict[str, Any]:
    environment = summary.get("environment") or {}
    device = str(environment.get("device") or "").removeprefix("computing on ") or None
    hardware, seconds = environment.get("hardware") or device, summary.get("seconds") or 0.0
    in_time = re.fullmatch(r"8x .*H100.*", hardware or "") and seconds <= TRAIN_SECONDS
    return {
        **vars(about),
        "date": about.date or datetime.now(UTC).date().isoformat(),
        "track": "10min_16mb" if in_time else "non_record_16mb",
        "val_bpb": headline["bpb"],
        "val_loss": headline["nats_per_token"],
        "mode": headline["mode"],
        "temperature": headline["temperature"],
        "val_tokens": headline["tokens"],
        "val_bytes": headline["bytes"],
        "eval_seconds": headline["seconds"],
        "bytes_total": code_bytes + model_bytes,
        "bytes_code": code_bytes,
        "bytes_model": model_bytes,
        "seconds": summary.get("seconds"),
        "steps": summary.get("steps"),
        "train_tokens": summary.get("tokens"),
        "parameters": (summary.get("parameters") or {}).get("kept"),
        "seed": run.train.seed,
        "hardware": hardware,
        "device": device,
        "torch": environment.get("torch"),
        "jepamba": __version__,
    }


def _without_paths(run: Run) -> Run:
    """Return `run` with file names in place of paths, which are private to the author's machine."""
    named = {f"data.{key}": getattr(run.data, key) for key in ("train", "val", "tokenizer")}
    public = {key: value if value.startswith(HUB) else Path(value).name for key, value in named.items() if value}
    return with_settings(run, public | {"data.cache": ""})


def _log(metrics: Metrics, run: Run, claims: Mapping[str, Any], headline: Mapping[str, Any]) -> str:
    """Return the log of the run in the challenge's format, in chronological order."""
    lines = [f"model_params:{claims['parameters']}", f"hardware:{claims['hardware']} seed:{run.train.seed}"]
    for record in sorted([*metrics.events, *metrics.steps, *metrics.vals], key=lambda record: record["step"]):
        kind, step = record["kind"], record["step"]
        if kind == "event":
            lines.append(f"step:{step} {record.get('what')}")
        elif kind == "val":
            score = f"val_loss:{record['nats_per_token']:.4f} val_bpb:{record['bpb']:.4f}"
            lines.append(f"step:{step}/{run.train.steps} {score}")
        else:
            line = step_line(step, run.train.steps, record["ce"], record["seconds"])
            lines.append(f"{line} grad_norm:{record['grad_norm']:.4f}")
    return "\n".join([*lines, *size_lines(claims), *score_lines(headline)]) + "\n"
