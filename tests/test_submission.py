"""Submissions: the script alone, in a bare process and a bare folder, gives the figure that the run claimed."""

from __future__ import annotations

import ast
import hashlib
import json
import lzma
import os
import re
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch

from jepamba.artifact import load_artifact, save_artifact
from jepamba.artifact.container import open_container
from jepamba.cli import main
from jepamba.config import Data, from_dict
from jepamba.data import load_tokens, write_shard
from jepamba.errors import UserError
from jepamba.ops.dispatch import use_kernels
from jepamba.presets import load_preset
from jepamba.submission import About, check, folder, program, scoring, write_submission
from jepamba.text import ByteTokenizer
from jepamba.train import train
from jepamba.train.dial import CODE_RESERVE
from jepamba.train.init_from import run_corpus

ABOUT = About(name="A test", author="A. Name", blurb="Nothing new.")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on pieces of its own, scored in sliding windows, with a validation text of its own."""
    place = tmp_path_factory.mktemp("submission")
    bodies = [body for _, body in sorted(topics.topics.items())]
    (place / "train.txt").write_text("\0".join(bodies[:30]), encoding="utf-8")
    (place / "val.txt").write_text("\0".join(bodies[30:36]), encoding="utf-8")
    run = from_dict(
        {
            "data": {
                "train": str(place / "train.txt"),
                "val": str(place / "val.txt"),
                "vocab": 400,
                "seq_len": 64,
                "cache": str(place / "cache"),
            },
            "model": {"embed_dim": 24, "d_model": 32, "n_layer": 3, "headdim": 16, "d_state": 8, "chunk_size": 16}
            | {"mlp_mult": 2.0},
            "quant": {"large": 512, "embedding": "int6"},
            "jepa": {"rollout_steps": 1, "sigreg_projections": 16},
            "train": {"steps": 30, "tokens_per_step": 512, "tokens_per_micro": 512, "seed": 3},
            "eval": {"stride": 32, "calibrate_tokens": 2048, "diagnostics_tokens": 0, "sample_tokens": 2}
            | {"prompts": ["The "]},
        }
    )
    # Without the C++ kernels, which the script does not have.
    with use_kernels(False):
        train(run, place / "run", preset="small")
    return place / "run"


@pytest.fixture(scope="module")
def made(run_dir: Path) -> Path:
    return write_submission(run_dir, run_dir.parent / "made", ABOUT)


def alone(script: Path, *words: str, missing: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run the script where no jepamba can be imported, from an empty folder, without the environment.

    Without `site`, Python does not see the package that was installed for development.
    """
    packages = str(Path(torch.__file__).parents[1])
    code = (
        f"import sys; sys.path.append({packages!r}); sys.modules.update(dict.fromkeys({missing!r}))\n"
        "import importlib.util, runpy\n"
        "assert importlib.util.find_spec('jepamba') is None\n"
        f"sys.argv = {[str(script), *words]!r}\n"
        f"runpy.run_path({str(script)!r}, run_name='__main__')\n"
    )
    empty = script.parent / "empty"
    empty.mkdir(exist_ok=True)
    command = [sys.executable, "-I", "-S", "-c", code]
    return subprocess.run(command, cwd=empty, env={"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)


@pytest.mark.slow
def test_the_script_alone_reproduces_the_figure_from_text(run_dir: Path, made: Path, tmp_path: Path) -> None:
    summary = json.loads((run_dir / "summary.json").read_text())
    claims = json.loads((made / "submission.json").read_text())
    assert claims["val_bpb"] == summary["bpb_sliding"]["bpb"]
    assert claims["mode"] == "sliding-32"
    for name in ("train_gpt.py", "artifact.jepa", "submission.json"):
        shutil.copy(made / name, tmp_path / name)
    codecs = {block.codec.partition("/")[0] for block in open_container(made / "artifact.jepa").blocks}
    unneeded = tuple(name for codec, name in folder.PACKAGES.items() if codec not in codecs)
    done = alone(tmp_path / "train_gpt.py", "--score", "--data", str(run_dir.parent / "val.txt"), missing=unneeded)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["bpb"] == pytest.approx(claims["val_bpb"], abs=1e-4)
    assert (found["tokens"], found["bytes"]) == (claims["val_tokens"], claims["val_bytes"])
    assert found["bytes_total"] == claims["bytes_total"] == found["bytes_code"] + found["bytes_model"]
    assert "off by" in done.stderr


ABSENT = ("safetensors", "rich", "huggingface_hub", "pyarrow", "scipy", "numba", "tomli_w", "jaxtyping", "matplotlib")
"""Packages that jepamba needs and the script must not."""


@pytest.fixture(scope="module")
def shards(run_dir: Path) -> Path:
    """The tokens of the run, as the challenge gives its own: a folder of shards."""
    text = run_corpus(load_preset(str(run_dir / "config.toml")))
    for split, tokens in (("train", text.train), ("val", text.val)):
        half = len(tokens) // 2
        write_shard(run_dir.parent / "shards" / f"fineweb_{split}_000000.bin", tokens.read(0, half))
        write_shard(run_dir.parent / "shards" / f"fineweb_{split}_000001.bin", tokens.read(half, len(tokens)))
    return run_dir.parent / "shards"


def test_the_script_alone_trains_the_artifact_of_the_run(run_dir: Path, shards: Path, tmp_path: Path) -> None:
    """Packed: bit for bit the artifact of `jepamba train`, and the same figures in the challenge's format."""
    made = write_submission(run_dir, tmp_path / "made", ABOUT, packed=True)
    claims, out = json.loads((made / "submission.json").read_text()), tmp_path / "new" / "model.jepa"
    done = alone(made / "train_gpt.py", "--data", str(shards), "--out", str(out), missing=ABSENT)
    assert done.returncode == 0, done.stderr
    assert out.read_bytes() == (run_dir / "artifact.jepa").read_bytes()
    log = out.with_suffix(".log").read_text()
    assert done.stdout.startswith(log)
    assert "step:30/30 train_loss:" in log
    assert f"Total submission size: {claims['bytes_total']} bytes" in log
    loss, bpb = re.findall(r"final_artifact_sliding_window_exact val_loss:(\S+) val_bpb:(\S+)\n$", log)[0]
    assert (float(loss), float(bpb)) == pytest.approx((claims["val_loss"], claims["val_bpb"]), abs=1e-6)


@pytest.mark.slow
def test_the_script_alone_takes_another_seed_and_no_other_text(
    run_dir: Path, made: Path, shards: Path, tmp_path: Path
) -> None:
    out = tmp_path / "model.jepa"
    other = alone(made / "train_gpt.py", "--data", str(shards), "--out", str(out), "--seed", "4", missing=ABSENT)
    assert other.returncode == 0, other.stderr
    assert out.read_bytes() != (run_dir / "artifact.jepa").read_bytes()
    refused = alone(made / "train_gpt.py", "--data", str(run_dir.parent / "val.txt"), missing=ABSENT)
    assert refused.returncode == 2
    assert "train_gpt.py: training needs --data with a folder" in refused.stderr


@pytest.mark.slow
def test_two_processes_under_torchrun_train_and_score(
    made: Path, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(made / "train_gpt.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DATA_PATH": str(shards)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "world_size:2" in done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    words = ["eval", str(tmp_path / "final_model.jepa"), "--data", str(shards), "--sliding", "32", "--json"]
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["bpb_decoded"] == pytest.approx(found["bpb"], abs=1e-6)
    claims = json.loads((made / "submission.json").read_text())
    other = shutil.copytree(made, tmp_path / "other")
    (other / "submission.json").write_text(json.dumps({**claims, "val_bpb": found["bpb"] + 0.01}))
    score = [*torchrun, str(other / "train_gpt.py"), "--score", "--artifact", "final_model.jepa"]
    done = subprocess.run(score, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert json.loads(done.stdout.splitlines()[-1])["bpb"] == pytest.approx(found["bpb"], abs=1e-6)
    assert done.returncode == 1  # another score than the one that the folder claims


def test_a_text_that_the_tokenizer_changes_has_no_claim() -> None:
    """Fewer decoded bytes, more of them, and as many (capitals, say): each is another text than the validation text."""
    score = {"bpb": 1.25, "bpb_decoded": 1.25, "bytes": 100, "decoded_bytes": 100, "nats_per_token": 2.0, "tokens": 40}
    score |= {"mode": "plain", "temperature": 1.0, "seconds": 1.0, "counted": "original", "unrestored_bytes": 0}
    assert folder._headline({"bpb_calibrated": score, "bpb_sliding": None})["bpb"] == 1.25
    older = {key: value for key, value in score.items() if "decoded" not in key and key != "unrestored_bytes"}
    assert folder._headline({"bpb_calibrated": older, "bpb_sliding": None})["bytes"] == 100
    for changed in ({"decoded_bytes": 80}, {"decoded_bytes": 120}, {"unrestored_bytes": 3}):
        with pytest.raises(UserError, match="of the 100 bytes of the validation text, and decodes"):
            folder._headline({"bpb_calibrated": score | changed, "bpb_sliding": None})


def scored(made: Path, monkeypatch: pytest.MonkeyPatch, data: Path) -> int:
    """The exit code of the script's program, run here."""
    monkeypatch.setattr(sys, "argv", ["train_gpt.py", "--score", "--data", str(data)])
    monkeypatch.setattr(program, "silence", lambda: None)  # for the rest of a process, which here has other tests
    return program.main(str(made / "train_gpt.py"), 32, {"train.seed": 3})


def test_a_false_claim_and_another_text_are_noticed(
    run_dir: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train_gpt.py", "artifact.jepa", "submission.json"):
        shutil.copy(made / name, tmp_path / name)
    claims = json.loads((made / "submission.json").read_text())
    assert scored(tmp_path, monkeypatch, run_dir.parent / "val.txt") == 0
    (tmp_path / "submission.json").write_text(json.dumps({**claims, "val_bpb": claims["val_bpb"] - 0.0002}))
    assert scored(tmp_path, monkeypatch, run_dir.parent / "val.txt") == 1
    assert "off by 2.0e-04" in capsys.readouterr().err
    other = tmp_path / "other.txt"
    other.write_text("Some other text.\n" * 40)
    assert scored(tmp_path, monkeypatch, other) == 1
    assert f"claimed for sliding-32, {claims['val_tokens']:,} targets" in capsys.readouterr().err
    (tmp_path / "submission.json").unlink()
    assert scored(tmp_path, monkeypatch, other) == 0  # nothing is claimed
    capsys.readouterr()
    for bad, complaint in ((b"\xff\xfe", "cannot be read as text"), (b"", "fewer than 2 tokens")):
        other.write_bytes(bad)
        assert scored(tmp_path, monkeypatch, other) == 2
        assert complaint in capsys.readouterr().err
    damaged = bytearray((made / "artifact.jepa").read_bytes())
    damaged[len(damaged) // 2] ^= 1
    (tmp_path / "artifact.jepa").write_bytes(damaged)
    assert scored(tmp_path, monkeypatch, other) == 2
    message = capsys.readouterr().err
    assert message.startswith("train_gpt.py: ")
    assert message.count("\n") == 1
    assert "checksum" in message


def test_packed_text_and_folders_of_shards_are_the_same_tokens(run_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_artifact(run_dir / "artifact.jepa").tokenizer
    text = run_dir.parent / "val.txt"
    (tmp_path / "val.txt.xz").write_bytes(lzma.compress(text.read_bytes()))
    plain, packed = (scoring.read_tokens([path], tokenizer) for path in (text, tmp_path / "val.txt.xz"))
    write_shard(tmp_path / "a_val_0.bin", plain.read(0, 100))
    write_shard(tmp_path / "a_val_1.bin", plain.read(100, len(plain)))
    shards = scoring.read_tokens([tmp_path], tokenizer)
    assert plain.read(0, len(plain)).tolist() == packed.read(0, len(packed)).tolist()
    assert plain.read(0, len(plain)).tolist() == shards.read(0, len(shards)).tolist()
    assert plain.text_bytes == len(text.read_bytes().replace(b"\0", b""))
    with pytest.raises(UserError, match=r"no .*_val_.*bin shard in it"):
        scoring.read_tokens([run_dir], tokenizer)


@pytest.mark.parametrize("kind", ["bytes", "bytes without separator", "pieces"])
def test_the_script_reads_the_tokens_that_eval_reads(run_dir: Path, tmp_path: Path, kind: str) -> None:
    pieces = load_artifact(run_dir / "artifact.jepa").tokenizer
    tokenizer = pieces if kind == "pieces" else ByteTokenizer(separator=kind == "bytes")
    (tmp_path / "a.txt").write_bytes("\N{BYTE ORDER MARK}The first.\0\0A second.\0".encode())
    (tmp_path / "b.txt").write_text("Überall.")
    found = scoring.read_tokens([tmp_path / "a.txt", tmp_path / "b.txt"], tokenizer)
    expected = load_tokens(tmp_path, tokenizer, Data(cache=str(tmp_path / "cache")))
    assert found.read(0, len(found)).tolist() == expected.read(0, len(expected)).tolist()
    assert (found.text_bytes, found.decoded_bytes) == (expected.text_bytes, expected.decoded_bytes)


@pytest.mark.slow
def test_packed_with_its_validation_shard_it_is_checked(run_dir: Path, made: Path, tmp_path: Path) -> None:
    out = write_submission(run_dir, tmp_path / "packed", ABOUT, packed=True, validation=True)
    found = check(out, run_dir)
    claims = json.loads((out / "submission.json").read_text())
    assert found["bpb"] == pytest.approx(claims["val_bpb"], abs=1e-4)
    assert (out / "train_gpt.py").stat().st_size == claims["bytes_code"] < 0.4 * (made / "train_gpt.py").stat().st_size
    assert (out / folder.VALIDATION).exists()
    assert f"--data {folder.VALIDATION}" in (out / "README.md").read_text()


def test_the_folder_holds_what_a_reviewer_wants_and_nothing_private(run_dir: Path, made: Path) -> None:
    names = {
        "README.md",
        "submission.json",
        "train_gpt.py",
        "requirements.txt",
        "artifact.jepa",
        "config.toml",
        "train.log",
    }
    assert {path.name for path in made.iterdir() if path.is_file()} == names
    claims = json.loads((made / "submission.json").read_text())
    assert claims["author"] == "A. Name"
    assert claims["date"] == datetime.now(UTC).date().isoformat()
    assert (claims["hardware"], claims["track"]) == ("1x CPU", "non_record_16mb")
    assert claims["bytes_model"] == (made / "artifact.jepa").stat().st_size
    assert claims["bytes_code"] == (made / "train_gpt.py").stat().st_size
    page = (made / "README.md").read_text()
    assert f"**{claims['val_bpb']:.4f} bits per byte**" in page
    assert f"{claims['bytes_total']:,} bytes" in page
    assert "It was trained on 1x CPU" in page
    assert "Ten minutes on 8 × H100 are not shown" in page
    eight = {"hardware": "8x NVIDIA H100 80GB HBM3"}
    for seconds, track in ((599.0, "10min_16mb"), (601.0, "non_record_16mb")):
        summary = {"environment": eight, "seconds": seconds}
        found = folder._claims(ABOUT, load_preset(str(run_dir / "config.toml")), summary, headline(claims), 1, 2)
        assert (found["track"], found["bytes_total"]) == (track, 3)
    log = (made / "train.log").read_text()
    assert log.count("grad_norm") == 30
    assert "step:30/30 train_loss:" in log
    assert f"Total submission size: {claims['bytes_total']} bytes\n" in log
    assert log.endswith(f"_exact val_loss:{claims['val_loss']:.8f} val_bpb:{claims['val_bpb']:.8f}\n")
    for name in names - {"artifact.jepa"}:
        assert str(run_dir.parent) not in (made / name).read_text(), name


def headline(claims: dict[str, Any]) -> dict[str, Any]:
    names = {"bpb": "val_bpb", "nats_per_token": "val_loss", "tokens": "val_tokens", "bytes": "val_bytes"}
    names |= {"seconds": "eval_seconds", "mode": "mode", "temperature": "temperature"}
    return {key: claims[name] for key, name in names.items()}


def third_party(source: str) -> set[str]:
    """The top-level packages that `source` imports anywhere, other than jepamba and the standard library."""
    nodes = list(ast.walk(ast.parse(source)))
    modules = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)]
    return {module.partition(".")[0] for module in modules} - sys.stdlib_module_names - {"jepamba"}


def test_the_script_needs_only_what_it_may(made: Path) -> None:
    source = (made / "train_gpt.py").read_text()
    codecs = set(folder.PACKAGES.values())
    assert {"torch", "numpy", "sentencepiece"} <= third_party(source)
    # The script writes no heads (safetensors) and silences progress (rich).
    assert third_party(source) <= {"torch", "numpy", "sentencepiece", "triton", "safetensors", "rich"} | codecs
    assert {"torch", "numpy", "sentencepiece"} | codecs == set((made / "requirements.txt").read_text().split())
    assert "def generate" not in source  # what the script does not need is not in it
    assert "jaxtyping" not in source


@pytest.mark.slow
def test_every_module_in_the_script_can_be_imported_and_read(made: Path) -> None:
    """Triton compiles its kernels from their source, which it gets as `inspect` does."""
    pytest.importorskip("triton")
    code = (
        "import importlib, inspect, sys\n"
        f"text, names = open({str(made / 'train_gpt.py')!r}).read(), {{'__name__': 'head'}}\n"
        "exec(text.partition('\\n# ==== ')[0], names)\n"
        f"sections = names['Sections']({str(made / 'train_gpt.py')!r}, text)\n"
        "sys.meta_path.insert(0, sections)\n"
        "for name in sections.sections:\n"
        "    module = importlib.import_module(name)\n"
        "    for value in vars(module).values():\n"
        "        value = getattr(value, 'fn', value)  # a Triton kernel's function\n"
        "        if inspect.isfunction(value) and value.__module__ == name:\n"
        "            source = inspect.getsource(value)\n"
        "            assert f'def {value.__name__}(' in source or 'lambda' in source, (name, value)\n"
        "print(len(sections.sections))\n"
    )
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 20


def test_too_many_bytes_are_refused_and_nothing_is_left(
    run_dir: Path, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    claims = json.loads((made / "submission.json").read_text())
    words = ["submission", str(run_dir), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(folder, "LIMIT_BYTES", claims["bytes_total"] - 1)
    assert main(words) == 0  # packed, because it would not fit otherwise
    packed = json.loads((tmp_path / "out/submission.json").read_text())
    assert packed["bytes_total"] == sum(
        (tmp_path / "out" / n).stat().st_size for n in ("train_gpt.py", "artifact.jepa")
    )
    assert packed["bytes_code"] < CODE_RESERVE
    shutil.rmtree(tmp_path / "out")
    capsys.readouterr()
    monkeypatch.setattr(folder, "LIMIT_BYTES", packed["bytes_total"] - 1)
    assert main(words) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert "1 over the limit" in message
    assert "train with quant.budget_bytes = " in message
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(folder, "LIMIT_BYTES", claims["bytes_total"])
    assert main([*words, "--json"]) == 0
    same = {key: value for key, value in json.loads(capsys.readouterr().out).items() if key in claims}
    assert same == {**claims, **vars(About()), "date": claims["date"]}


def test_figures_of_another_artifact_are_refused(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sound artifact of another temperature, by its sha256; and by its size, where no sha256 was noted."""
    copy, out = tmp_path / "run", tmp_path / "out"
    shutil.copytree(run_dir, copy)
    artifact, summary_file = copy / "artifact.jepa", copy / "summary.json"
    own, summary = artifact.read_bytes(), json.loads(summary_file.read_text())
    assert summary["artifact_sha256"] == hashlib.sha256(own).hexdigest()
    loaded = load_artifact(artifact)
    save_artifact(artifact, loaded.model, loaded.run, loaded.tokenizer, 7.25, {"note": "another one"})
    other = artifact.read_bytes()
    older = {key: value for key, value in summary.items() if key != "artifact_sha256"}
    unknown = {**older, "artifact_bytes": None}
    for written, key in ((summary, "artifact_sha256"), (older, "artifact_bytes"), (unknown, "artifact_bytes")):
        summary_file.write_text(json.dumps(written))
        assert main(["submission", str(copy), "-o", str(out)]) == 2
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        assert f"its {key} is" in message
        assert not out.exists()
    assert len(other) != len(own)
    artifact.write_bytes(own)
    summary_file.write_text(json.dumps(older))
    write_submission(copy, out, ABOUT)


def test_refusals(run_dir: Path, made: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="already exists"):
        write_submission(run_dir, made, ABOUT)
    with pytest.raises(UserError, match="no finished run here"):
        write_submission(tmp_path, tmp_path / "out", ABOUT)
    broken = tmp_path / "run"
    shutil.copytree(run_dir, broken)
    (broken / "summary.json").write_text("{}")
    with pytest.raises(UserError, match=r"summary\.json does not belong to a finished run"):
        write_submission(broken, tmp_path / "out", ABOUT)
    assert not (tmp_path / "out").exists()
