"""The model in the package: it is current, commands use it where no artifact is named, and a wheel has it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
import venv
import zipfile
from pathlib import Path

import brotli
import pytest
import torch

import jepamba
from compress_cases import TEXT as ENGLISH
from compress_cases import artifact_at
from jepamba.artifact.container import VERSION, open_container
from jepamba.artifact.locate import SHIPPED, SOURCES
from jepamba.artifact.manifest import Manifest
from jepamba.cli import main
from jepamba.errors import UserError
from jepamba.hub import Pushed
from jepamba.text import ByteTokenizer
from ship import MAX_BYTES, PASSAGE, README, SAMPLE, SAMPLE_BLOCK, TEXT

RENEW = "the model in the package is not current: run `make shipped-model` (CONTRIBUTING.md)"
DEFAULT_SAID = "jepamba: no ARTIFACT given: the small model in the package"


def test_the_model_is_current() -> None:
    """Fails after a change of the format, of the settings of a model, or of what a model computes."""
    try:
        header = open_container(SHIPPED).header
        loaded = jepamba.load(device="cpu")
    except UserError as error:
        pytest.fail(f"{RENEW}: {error}")
    assert header == Manifest.from_header(header).to_header(), RENEW
    assert header["extra"]["passage_bpb"] == pytest.approx(loaded.score(PASSAGE).bpb, abs=1e-3), RENEW
    assert SHIPPED.stat().st_size <= MAX_BYTES


def test_another_format_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jepamba.artifact.container.VERSION", VERSION + 1)
    with pytest.raises(pytest.fail.Exception, match="make shipped-model"):
        test_the_model_is_current()


def test_it_beats_brotli() -> None:
    assert jepamba.load(device="cpu").score(PASSAGE).bpb < 0.5 * 8 * len(brotli.compress(PASSAGE.encode())) / len(
        PASSAGE
    )


def test_the_sample_of_the_readme_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(SAMPLE) == 0
    printed = capsys.readouterr()
    assert printed.err.startswith(DEFAULT_SAID)
    assert printed.err.count("\n") == 1
    shown = re.search(SAMPLE_BLOCK, README.read_text(encoding="utf-8"))
    assert shown is not None
    assert shown[2].partition("\n")[2] == printed.out, RENEW


def test_the_first_token_does_not_wait_for_what_it_does_not_need() -> None:
    """SymPy comes with PyTorch's compiler and takes 0.3 s, Matplotlib half a second. Another model needs no more."""
    script = (
        "import sys, jepamba; next(jepamba.load(device='cpu').stream('Once', 1))\n"
        "from jepamba.config import Model, Quant\nfrom jepamba.artifact.manifest import expected_tensors\n"
        "expected_tensors(Model(vocab_size=300, attention_every=2, tie=2), Quant()); print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    unneeded = {"jepamba.train", "jepamba.report", "sympy", "torch._dynamo", "matplotlib", "numba"}
    assert unneeded & set(done.stdout.split()) == set()


@pytest.mark.parametrize(
    ("words", "prompt"),
    [
        (["Once"], "Once"),
        (["either/or of two words"], "either/or of two words"),
        (["--prompt", "Once"], "Once"),
        ([str(SHIPPED), "Once"], "Once"),
        ([str(SHIPPED)], ""),
        ([], ""),
    ],
)
def test_generate_takes_a_prompt_an_artifact_or_both(
    words: list[str], prompt: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", *words, "--tokens", "3", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["prompt"] == prompt
    assert (DEFAULT_SAID in printed.err) == (str(SHIPPED) not in words)
    assert ("jepamba: 'Once' is no file or folder: it is taken as the prompt" in printed.err) == (words == ["Once"])


def test_a_file_is_an_artifact_and_no_prompt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "Once").touch()
    assert main(["generate", "Once"]) == 2
    assert "Once: not a valid artifact" in capsys.readouterr().err


def test_other_commands_take_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(PASSAGE)
    assert main(["eval", "--data", str(text), "--json"]) == 0
    printed = capsys.readouterr()
    assert DEFAULT_SAID in printed.err
    assert json.loads(printed.out)["bpb"] == pytest.approx(jepamba.load(device="cpu").score(PASSAGE).bpb)
    assert main(["latents", "--data", str(text), "-o", str(tmp_path / "latents.safetensors")]) == 0
    assert DEFAULT_SAID in capsys.readouterr().err
    assert main(["inspect"]) == 0
    printed = capsys.readouterr()
    assert DEFAULT_SAID in printed.err
    assert TEXT in printed.out
    assert str(SOURCES) in printed.out


def test_export_and_push_take_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A single word is DIR or NAME, unless it names a model. Flags may stand before, between and after."""
    monkeypatch.chdir(tmp_path)
    for out, words in (
        ("alone", ["--to", "transformers", "alone"]),
        ("first", ["first", "--to", "transformers"]),
        ("both", [str(SHIPPED), "--to", "transformers", "both"]),
    ):
        assert main(["export", *words]) == 0
        assert (DEFAULT_SAID in capsys.readouterr().err) == (out != "both")
        assert (tmp_path / out / "config.json").exists()
    pushed = list[tuple[object, str]]()

    def push(artifact: object, name: str, **_: object) -> Pushed:
        pushed.append((artifact, name))
        return Pushed("", "", [])

    monkeypatch.setattr("jepamba.hub.push", push)
    assert main(["push", "me/small", "--license", "mit"]) == 0
    assert DEFAULT_SAID in capsys.readouterr().err
    assert main(["push", str(SHIPPED), "--license", "mit", "me/small"]) == 0
    assert pushed == [(SHIPPED, "me/small"), (str(SHIPPED), "me/small")]
    for word in ("alone", "mine.jepa", "hf://me/small"):
        for command, flags, missing in (
            ("export", ("--to", "transformers"), "DIR"),
            ("push", ("--license", "x"), "NAME"),
        ):
            assert main([command, word, *flags]) == 2
            assert f"jepamba: {word}: this is ARTIFACT, and {missing} is missing after it" in capsys.readouterr().err
            assert main([command, *flags]) == 2
            assert capsys.readouterr().err.startswith(f"jepamba: {missing} is missing (see `jepamba {command} ")


def test_every_source_has_a_licence() -> None:
    rows = re.findall(
        r"^\| (?!source|---)(.+?) \| (.+?) \| (.+?) \| ([\d,]+) \| [\d.]+ \|$",
        SOURCES.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) > 40
    assert sum(int(row[3].replace(",", "")) for row in rows) == 72_247, "as the text above the table says"
    known = "public domain|CC0|CC-BY(-SA)?-[34].0|MIT|GFDL|GPL|MPL-2.0|OGL|PostgreSQL"
    assert [row for row in rows if not re.match(known, row[2]) or not re.match("https://|Debian: ", row[1])] == []


def test_a_file_is_decompressed_with_the_model_that_compressed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    text, back = tmp_path / "text.txt", tmp_path / "back.txt"
    text.write_text(PASSAGE)
    own = artifact_at(tmp_path / "runs/mine/artifact.jepa", ByteTokenizer(), ENGLISH)
    artifact_at(tmp_path / "runs/another/artifact.jepa", ByteTokenizer(), b"another")
    for words, model in (([], SHIPPED), (["--model", "runs/mine"], Path("runs/mine/artifact.jepa"))):
        assert main(["compress", str(text), "-o", "text.jpc", *words]) == 0
        assert (DEFAULT_SAID in capsys.readouterr().err) == (not words)
        assert main(["decompress", "text.jpc", "-o", str(back)]) == 0
        assert f"text.jpc was compressed with {model}\n" in capsys.readouterr().err
        assert back.read_text() == PASSAGE
        back.unlink()
    own.unlink()
    assert main(["decompress", "text.jpc", "-o", str(back)]) == 2
    assert "name the model with --model" in capsys.readouterr().err
    assert main(["decompress", str(text), "-o", str(back)]) == 2
    assert "text.txt: not decompressed: it does not start with the signature" in capsys.readouterr().err
    assert not back.exists()


@pytest.mark.slow
def test_a_wheel_generates_in_another_folder(tmp_path: Path) -> None:
    """In a clean virtual environment that takes from this one what the package depends on, and not the package."""
    source, wheels, clean, elsewhere = (tmp_path / name for name in ("source", "wheels", "clean", "elsewhere"))
    root = README.parent
    shutil.copytree(root / "src", source / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(root / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", wheels, source], check=True)
    (wheel,) = wheels.iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"jepamba/shipped/model.jepa", "jepamba/shipped/SOURCES.md", "jepamba/artifact/ans/decoder.cpp"} < set(names)

    venv.create(clean)
    subprocess.run([*pip, "--python", clean / "bin/python", "install", "--no-deps", wheel], check=True)
    (packages,) = clean.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")
    elsewhere.mkdir()
    started = time.monotonic()
    done = subprocess.run(
        [clean / "bin/jepamba", "generate", "Once upon", "--tokens", "16"],
        cwd=elsewhere, env={**os.environ, "PYTHONPATH": ""}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert time.monotonic() - started < 60
    assert re.match(r"Once upon\S* ?\S", done.stdout)
    assert done.stderr.startswith(DEFAULT_SAID)
    assert done.stderr.count("\n") == 1
