"""The commands as a user calls them: what they print, what they refuse and how."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import torch
from safetensors import safe_open

from jepamba import __version__
from jepamba.artifact import load_artifact
from jepamba.artifact.heads import HEADS, save_heads
from jepamba.cli import build_parser, common, main, presets, streams
from jepamba.config import Jepa
from jepamba.data import load_tokens
from jepamba.errors import UserError
from jepamba.evaluate import Latents, compute_latents
from jepamba.jepa import JepaHeads
from jepamba.presets import load_preset, preset_names

TINY = [
    "--model.d_model", "32", "--model.embed_dim", "16", "--model.n_layer", "2",
    "--model.headdim", "16", "--model.d_state", "8", "--model.mlp_mult", "1",
    "--data.seq_len", "64", "--data.tokenizer", "bytes", "--train.tokens_per_step", "512",
    "--train.tokens_per_micro", "512", "--train.seconds", "0", "--train.val_every", "0",
    "--train.terms_every", "0", "--eval.calibrate_tokens", "512", "--eval.diagnostics_tokens", "512",
    "--eval.sample_tokens", "4", "--jepa.sigreg_samples", "64", "--jepa.sigreg_projections", "8",
]  # fmt: skip


def documents(folder: Path) -> Path:
    """A folder of twelve short English documents."""
    folder.mkdir()
    text = Path(os.__file__).read_text(encoding="utf-8")
    for index in range(12):
        (folder / f"{index:02}.txt").write_text(text[600 * index : 600 * (index + 1)], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps of a tiny model on bytes."""
    base = tmp_path_factory.mktemp("cli")
    text = documents(base / "text")
    words = ["train", "quick", *TINY, "--data.train", str(text), "--train.steps", "3", "--out", str(base / "run")]
    assert main(words) == 0
    return base / "run"


def out_of(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    assert main(words) == 0
    return capsys.readouterr().out


def json_of(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    return json.loads(out_of(capsys, *words, "--json"))


def mistake(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a refused command prints."""
    capsys.readouterr()
    assert main(words) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1, captured.err
    assert captured.err.startswith("jepamba: ")
    return captured.err


def test_a_run_leaves_everything_in_its_folder(run_dir: Path) -> None:
    for name in ("artifact.jepa", "metrics.jsonl", "summary.json", "config.toml", "report.html"):
        assert (run_dir / name).stat().st_size > 0
    assert load_preset(str(run_dir / "config.toml")).train.steps == 3


def test_eval_prints_the_promised_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact, text = str(run_dir / "artifact.jepa"), run_dir.parent / "text" / "03.txt"
    found = json_of(capsys, "eval", artifact, "--data", str(text))
    assert found["mode"] == "plain"
    assert found["bytes"] == text.stat().st_size
    assert found["bpb"] == pytest.approx(found["nats_per_token"] * found["tokens"] / math.log(2) / found["bytes"])
    # Bytes mode or our own BPE: the text comes back as it was.
    assert (found["bpb_decoded"], found["decoded_bytes"]) == (found["bpb"], found["bytes"])
    assert (found["counted"], found["reset"]) == ("original", True)
    assert found["temperature"] == json.loads((run_dir / "summary.json").read_text())["temperature"]
    sliding = json_of(capsys, "eval", artifact, "--data", str(text), "--sliding", "16", "--temperature", "2")
    assert (sliding["tokens"], sliding["bytes"]) == (found["tokens"], found["bytes"])
    assert sliding["temperature"] == 2.0
    assert sliding["mode"] != "plain"
    assert "bits per byte" in out_of(capsys, "eval", artifact, "--data", str(text))
    carried = json_of(capsys, "eval", artifact, "--data", str(text), "--carry")
    assert (carried["tokens"], carried["mode"], carried["reset"]) == (found["tokens"], "carried", True)
    assert carried["nats_per_token"] != found["nats_per_token"]
    assert not json_of(capsys, "eval", artifact, "--data", str(text), "--carry", "--no-reset")["reset"]
    shown = out_of(capsys, "eval", artifact, "--data", str(text), "--carry", "--no-reset")
    assert "state carried, not reset at document starts" in shown


def test_latents_writes_h_and_z(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(run_dir / "artifact.jepa", tmp_path)
    path, text, out = tmp_path / "artifact.jepa", run_dir.parent / "text" / "03.txt", tmp_path / "l.safetensors"
    words = ["latents", str(path), "--data", str(text), "-o", str(out)]

    def written(*more: str) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
        printed = json_of(capsys, *words, *more)
        with safe_open(out, framework="pt") as file:
            tensors, metadata = {name: file.get_tensor(name) for name in Latents._fields}, file.metadata()
        assert [printed["tokens"], printed["d_model"]] == list(tensors["latents"].shape)
        assert printed["bytes"] == out.stat().st_size
        assert {name: str(printed[name]).lower() for name in metadata} == metadata
        return tensors, metadata

    artifact = load_artifact(path)
    tokens = load_tokens(text, artifact.tokenizer, artifact.run.data)
    found, metadata = written()
    expected = compute_latents(artifact.model, tokens, 64)
    assert all(torch.equal(found[name], value) for name, value in expected._asdict().items())
    assert metadata == {
        "latent": "h",
        "mode": "plain",
        "seq_len": "64",
        "reset": "true",
        "artifact_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "tokenizer_fingerprint": artifact.tokenizer.fingerprint,
    }
    carried, metadata = written("--carry", "--no-reset", "--limit", "100", "--dtype", "float16", "--measure")
    assert (metadata["mode"], metadata["reset"]) == ("carried", "false")
    expected = compute_latents(artifact.model, tokens, 64, carry=True, reset=False, limit=100, dtype=torch.float16)
    assert torch.equal(carried["latents"], expected.latents)

    message = mistake(capsys, *words, "--latent", "z")
    assert f"{tmp_path / HEADS}: no such file" in message
    assert "train.keep_heads" in message
    heads = JepaHeads(Jepa(), 32)
    save_heads(tmp_path / HEADS, heads, Jepa(), metadata["artifact_sha256"])
    with torch.no_grad():
        expected_z = heads.project(found["latents"][None])[0]
    torch.testing.assert_close(written("--latent", "z")[0]["latents"], expected_z, rtol=1e-5, atol=1e-5)
    save_heads(tmp_path / HEADS, heads, Jepa(), "0" * 64)
    assert "belongs to another artifact" in mistake(capsys, *words, "--latent", "z")
    assert "effective rank" in out_of(capsys, *words, "--measure")
    measures = json_of(capsys, *words, "--measure")
    assert sum(measures["spectrum"]) == pytest.approx(1)
    assert "1,000 tokens or more" in mistake(capsys, *words, "--probe")
    longer = ["latents", str(path), "--data", str(text.parent), "--probe", "-o", str(out)]
    probes = json_of(capsys, *longer)["probes"]
    assert {"accuracy", "majority", "shuffled", "classes"} == probes["part_2"].keys()
    shown = out_of(capsys, *longer)
    assert "cosine of centred latents: " in shown
    assert "shuffled labels" in shown
    assert f"{probes['part_2']['majority']:.1%}".replace("%", " %") in shown
    assert json_of(capsys, "latents", str(tmp_path), *words[2:])["latent"] == "h", "the folder instead of the artifact"
    for other in (path, tmp_path / HEADS, text):
        assert "also an input" in mistake(capsys, *words, "-o", str(other))


def test_eval_never_shows_an_adapted_score_as_another(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["eval", str(run_dir / "artifact.jepa"), "--data", str(run_dir.parent / "text" / "03.txt")]
    default, slow, fast = (
        json_of(capsys, *words, "--adapt", *lr) for lr in ([], ["--adapt-lr", "0"], ["--adapt-lr", "0.001"])
    )
    carried = json_of(capsys, *words, "--carry")
    assert [found["mode"] for found in (default, slow, fast)] == ["adapted-5e-05", "adapted-0.0", "adapted-0.001"]
    figures = {"bpb", "bpb_decoded", "nats_per_token"}
    assert {name + "_adapted" for name in figures} == default.keys() - carried.keys()
    assert figures == carried.keys() - default.keys()
    assert slow["nats_per_token_adapted"] == pytest.approx(carried["nats_per_token"], rel=1e-6)
    assert fast["bpb_adapted"] < default["bpb_adapted"] < slow["bpb_adapted"]
    shown = out_of(capsys, *words, "--adapt")
    assert f"{default['bpb_adapted']:.4f} adapted bits per byte  (adapted-5e-05: state carried" in shown
    assert shown.count("bits per byte") == shown.count("adapted bits per byte")
    assert shown.count("nats per token") == shown.count("adapted nats per token") == 1
    for mode in ([], ["--carry"]):
        assert "adapted" not in out_of(capsys, *words, *mode)


@pytest.mark.parametrize(("lr", "message"), [("-1", "at least 0"), ("nan", "at least 0"), ("1e30", "smaller rate")])
def test_eval_refuses_a_bad_learning_rate(
    run_dir: Path, capsys: pytest.CaptureFixture[str], lr: str, message: str
) -> None:
    words = ["eval", str(run_dir / "artifact.jepa"), "--data", str(run_dir.parent / "text" / "03.txt")]
    assert message in mistake(capsys, *words, "--adapt", "--adapt-lr", lr)


def test_adaptation_is_refused_on_several_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "start it without torchrun" in mistake(capsys, "eval", "a.jepa", "--data", "x", "--adapt")


def test_eval_shows_both_figures_where_the_tokenizer_changes_text(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model with the library's own normaliser: two spaces come back as one."""
    text, model = tmp_path / "text.txt", tmp_path / "given"
    pages = [page.read_text() for page in sorted((run_dir.parent / "text").glob("*.txt"))]
    text.write_text("\0".join(page.replace(" ", "  ") for page in pages))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter("\n".join(pages).split("\n")), model_prefix=str(model), model_type="bpe",
        vocab_size=400, byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3, minloglevel=3,
        hard_vocab_limit=False,
    )  # fmt: skip
    out = tmp_path / "run"
    settings = [word if word != "bytes" else f"{model}.model" for word in TINY]
    assert main(["train", "quick", *settings, "--data.train", str(text), "--train.steps", "3", "--out", str(out)]) == 0
    capsys.readouterr()
    artifact = str(out / "artifact.jepa")
    found = json_of(capsys, "eval", artifact, "--data", str(text))
    assert found["bytes"] == len(text.read_bytes()) - (len(pages) - 1) > found["decoded_bytes"]
    assert found["counted"] == "original"
    assert found["bpb"] * found["bytes"] == pytest.approx(found["bpb_decoded"] * found["decoded_bytes"])
    shown = out_of(capsys, "eval", artifact, "--data", str(text))
    assert f"{found['bpb']:.4f} bits per byte" in shown
    assert f"{found['bpb_decoded']:.4f} bits per byte of the text that the tokenizer decodes" in shown
    assert "by decoded bytes" in (out / "report.html").read_text()


def test_eval_takes_shards(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, shards = run_dir.parent / "text", tmp_path / "shards"
    built = json_of(capsys, "data", "build", str(text), "--out", str(shards), "--tokenizer", "bytes")
    found = json_of(capsys, "eval", str(run_dir / "artifact.jepa"), "--data", str(shards))
    assert found["bytes"] == built["splits"]["val"]["text_bytes"]


def test_generate_is_the_same_for_a_seed(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", str(run_dir / "artifact.jepa"), "--prompt", "The ", "--tokens", "12"]
    first, again, other = (out_of(capsys, *words, "--seed", seed) for seed in ("1", "1", "2"))
    assert first == again != other
    assert first.startswith("The ")
    found = json_of(capsys, *words, "--seed", "1", "--top-k", "5", "--top-p", "0.9", "--temperature", "0.5")
    assert found["prompt"] == "The "
    assert "temperature = -1: must be 0" in mistake(capsys, *words, "--temperature", "-1")
    assert "top_p = 2: must be above 0" in mistake(capsys, *words, "--top-p", "2")


def test_a_dash_is_standard_input(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, text = str(run_dir), run_dir.parent / "text" / "03.txt"
    several = tmp_path / "several.txt"
    several.write_bytes(b"\0".join(page.read_bytes() for page in sorted(text.parent.glob("0*.txt"))) + b"\0")

    def from_stdin(content: bytes, *words: str) -> Any:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        return json_of(capsys, *words)

    for flags in ([], ["--carry"]):
        expected = json_of(capsys, "eval", run, "--data", str(several), *flags)
        found = from_stdin(several.read_bytes(), "eval", run, "--data", "-", *flags)
        assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    for file, out in (("-", tmp_path / "a.jpc"), (str(text), tmp_path / "b.jpc")):
        from_stdin(text.read_bytes(), "compress", file, "--model", run, "-o", str(out))
    packed, back = (tmp_path / "a.jpc").read_bytes(), tmp_path / "back.txt"
    assert packed == (tmp_path / "b.jpc").read_bytes()
    from_stdin(packed, "decompress", "-", "--model", run, "-o", str(back))
    assert back.read_bytes() == text.read_bytes()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(packed[:-1])))
    shown = mistake(capsys, "decompress", "-", "--model", run, "-o", str(back))
    assert "jepamba: standard input: not decompressed: " in shown
    given = json_of(capsys, "generate", run, "--prompt", "The été", "--tokens", "5")
    (tmp_path / "prompt.txt").write_text("The été\n", encoding="utf-8")
    with (tmp_path / "prompt.txt").open(encoding="utf-8") as piped:
        monkeypatch.setattr(sys, "stdin", piped)
        assert main(["generate", run, "--tokens", "5", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == given
    assert printed.err == "jepamba: no prompt given: reading it from standard input\n"
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert json_of(capsys, "generate", run, "--tokens", "5")["prompt"] == ""
    assert from_stdin("The été\n".encode(), "generate", run, "--prompt", "-", "--tokens", "5") == given
    for content, message in ((b"a\xff", "not UTF-8 (byte 0xFF at 1)"), (b"", "fewer than 2 tokens")):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content)))
        assert message in mistake(capsys, "eval", run, "--data", "-")
    monkeypatch.setattr(streams, "MAX_STDIN", 3)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"four")))
    assert "more than 3 bytes" in mistake(capsys, "eval", run, "--data", "-")


def test_a_run_folder_stands_for_its_artifact(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, text = run_dir / "artifact.jepa", str(run_dir.parent / "text" / "03.txt")
    scores = [json_of(capsys, "eval", str(path), "--data", text)["bpb"] for path in (artifact, run_dir)]
    assert scores[0] == scores[1]
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    assert json_of(capsys, "eval", str(newest), "--data", text)["temperature"] == 1
    packed, back = str(tmp_path / "packed"), tmp_path / "back"
    out_of(capsys, "compress", text, "--model", str(run_dir), "-o", packed)
    out_of(capsys, "decompress", packed, "--model", str(artifact), "-o", str(back))
    assert back.read_bytes() == Path(text).read_bytes()
    for words in (["eval", "--data", text], ["generate"], ["inspect"], ["latents", "--data", text, "-o", packed]):
        assert "no artifact.jepa here" in mistake(capsys, words[0], str(tmp_path), *words[1:])
        assert "hf://name: not the name of a model" in mistake(capsys, words[0], "hf://name", *words[1:])


def test_a_run_without_an_artifact_can_be_finished(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.toml").touch()
    assert f"no artifact.jepa here; `jepamba resume {tmp_path}` finishes" in mistake(capsys, "inspect", str(tmp_path))


def test_compress_says_that_a_small_file_grows(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "text.jpc"
    for content, grows in (
        ("Once upon a time there was a small village.", True),
        ("The function returns. " * 500, False),
    ):
        text.write_text(content)
        shown = out_of(capsys, "compress", str(text), "--model", str(run_dir), "-o", str(out))
        assert (out.stat().st_size > len(content)) == grows
        assert ("larger than the original" in shown) == grows


@pytest.mark.slow
def test_generate_asks_for_prompts_on_a_terminal(run_dir: Path) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "jepamba", "generate", str(run_dir), "--tokens", "5", "--temperature", "0"]
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.PIPE, text=True)
    os.close(theirs)
    shown, typed = b"", [b"The one\n", None, b"Another\n", b"\x04"]
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            shown += os.read(ours, 1 << 12)
        except OSError:  # the other end is closed
            break
        if typed and shown.count(b"> ") > 4 - len(typed):
            if (line := typed.pop(0)) is None:
                time.sleep(1)  # between writing the prompt and waiting for a key, readline would not see the signal
                process.send_signal(signal.SIGINT)  # as Ctrl-C at the empty prompt does
            else:
                os.write(ours, line)
    os.close(ours)
    assert process.wait(timeout=20) == 0
    assert shown.count(b"The one") == shown.count(b"Another") == 2, shown
    assert process.stderr is not None
    assert "Ctrl-D ends" in process.stderr.read()
    process.stderr.close()


def test_a_single_file_trains(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "input.txt"
    text.write_text("\n\n".join(page.read_text() for page in sorted((run_dir.parent / "text").iterdir())))
    words = ["train", "quick", *TINY, "--data.train", str(text), "--train.steps", "1", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    captured = capsys.readouterr()
    size = re.search(r"([\d,]+) bytes at the end of the only document are held out", captured.err)
    assert size is not None, captured.err
    assert 0.05 < int(size[1].replace(",", "")) / text.stat().st_size < 0.15


def test_inspect(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = json_of(capsys, "inspect", str(run_dir / "artifact.jepa"))
    assert found["bytes"] == (run_dir / "artifact.jepa").stat().st_size
    printed = out_of(capsys, "inspect", str(run_dir / "artifact.jepa"))
    assert f"{found['parameters']:,} parameters in {found['bytes']:,} bytes" in printed
    assert "expected error" in printed
    of_run = json_of(capsys, "inspect", str(run_dir))
    newest = sorted((run_dir / "checkpoints").iterdir())[-1]
    assert of_run["checkpoint"] == newest.name
    assert of_run["masters_are_its_own"] is True
    assert all(row["error"] is not None for row in of_run["tensors"])
    given = ["inspect", str(run_dir / "artifact.jepa"), "--checkpoint"]
    assert json_of(capsys, *given, str(newest)) == of_run
    assert json_of(capsys, *given, str(run_dir)) == of_run
    assert "error: stored weights against the unrounded weights" in out_of(capsys, "inspect", str(run_dir))


def test_inspect_needs_no_checkpoint(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A damaged one in the folder of a run is said; one that was asked for is refused."""
    run = shutil.copytree(run_dir, tmp_path / "run")
    checkpoint = sorted((run / "checkpoints").iterdir())[-1]
    for file in checkpoint.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[:-7])
    assert main(["inspect", str(run)]) == 0
    done = capsys.readouterr()
    assert "expected error" in done.out
    assert checkpoint.name in done.err
    assert main(["inspect", str(run), "--checkpoint", str(checkpoint)]) == 2


def test_resume_with_another_size_names_it(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = shutil.copytree(run_dir, tmp_path / "run")
    for name in ("artifact.jepa", "summary.json"):
        (run / name).unlink()
    config = (run / "config.toml").read_text()
    width = int(re.search(r"^embed_dim = (\d+)$", config, re.MULTILINE)[1])
    (run / "config.toml").write_text(config.replace(f"embed_dim = {width}\n", f"embed_dim = {2 * width}\n"))
    assert main(["resume", str(run)]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert f"{width}) in the checkpoint and" in line
    assert "by config.toml; put back the [model]" in line


@pytest.mark.parametrize(
    ("preset", "kept", "training_only"),
    [("submission-bpe", 32_816_684, 4_099_200), ("submission-byte", 37_007_208, 5_902_080)],
)
def test_a_dry_run_prints_the_published_counts(
    preset: str, kept: int, training_only: int, capsys: pytest.CaptureFixture[str]
) -> None:
    found = json_of(capsys, "train", preset, "--dry-run")
    assert found.keys() == {"parameters", "artifact_bytes_estimate"}
    assert found["parameters"] == {"kept": kept, "training_only": training_only}
    assert 0.5 * kept < found["artifact_bytes_estimate"] < 0.6 * kept


def test_a_dry_run_writes_nothing_and_shows_the_components(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    printed = out_of(capsys, "train", "quick", "--dry-run", "--jepa.weight", "0", "--jepa.sigreg-weight", "0")
    assert "training only" in printed
    assert "mixer input" in printed
    assert list(tmp_path.iterdir()) == []


def test_resume_of_a_finished_run_and_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((run_dir / "summary.json").read_text())
    found = json_of(capsys, "resume", str(run_dir))
    assert found["steps"] == before["steps"] == 3
    assert found["bpb_plain"]["bpb"] == before["bpb_plain"]["bpb"]


def test_data_build_trains_a_tokenizer_over_several_paths(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = run_dir.parent / "text"
    shutil.copy(text / "00.txt", tmp_path / "more.txt")
    paths = [str(text), str(tmp_path / "more.txt"), "--val", str(text / "01.txt")]
    found = json_of(capsys, "data", "build", *paths, "--out", str(tmp_path / "s"), "--vocab", "300")
    assert found["tokenizer"]["kind"] == "sentencepiece"
    assert found["splits"]["train"]["documents"] == 13
    assert found["splits"]["val"]["documents"] == 1
    assert json_of(capsys, "data", "info", str(tmp_path / "s")) == found
    assert "sentencepiece" in out_of(capsys, "data", "info", str(tmp_path / "s"))
    # The same tokenizer again, from its file.
    model = next((tmp_path / "s").glob("*.model"))
    again = json_of(capsys, "data", "build", *paths, "--out", str(tmp_path / "t"), "--tokenizer", str(model))
    assert again["tokenizer"] == found["tokenizer"]
    assert again["splits"] == found["splits"]


def test_presets_and_plans_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(json_of(capsys, "presets")) == set(preset_names())
    assert out_of(capsys, "presets", "quick").startswith("#")
    assert "sigreg_t_max = 3.0" in out_of(capsys, "presets", "quick+sigreg-lewm")
    assert "quick-jepa" in json_of(capsys, "study", "plans")


MISTAKES = [
    (["trian"], "did you mean `jepamba train`"),
    (["train"], "PRESET"),
    (["train", "quik"], "unknown preset 'quik'"),
    (["train", "quick", "--train.stps", "3"], "did you mean --train.steps?"),
    (["train", "quick", "--stpes", "3"], "unknown flag --stpes; did you mean --train.steps?"),
    (["train", "quick", "--otu", "x"], "did you mean --out?"),
    (["train", "quick", "--n_embd", "64"], "unknown flag --n_embd; did you mean --model.d_model?"),
    (["train", "quick", "--model.hidden_dim", "64"], "did you mean --model.d_model?"),
    (["train", "quick", "--model.dropout", "0.1"], "unknown flag --model.dropout; there is no dropout: weight decay"),
    (["train", "quick", "--train.temperature", "1"], "training has no temperature: it is measured at the end"),
    (["train", "quick", "--model.num-layers", "4"], "did you mean --model.n_layer?"),
    (["train", "quick", "--conv_width=4"], "did you mean --model.d_conv?"),
    (["train", "quick", "--vocab-size", "4096"], "did you mean --data.vocab?"),
    (["train", "quick", "extra"], "unexpected argument 'extra'"),
    (["train", "quick", "--", "--train.steps", "3"], "misplaced flag --train.steps; flags go after the command and"),
    (["train", "--", "quick", "--train.steps=3"], "misplaced flag --train.steps; flags go after the command and"),
    (["--train.steps", "3", "train", "quick"], "misplaced flag --train.steps; flags go after the command and"),
    (["train", "quick", "--json", "--", "--out", "x"], "misplaced flag --out; flags go after the command and"),
    (["train", "quick", "--", "--train.stps", "3"], "unknown flag --train.stps; did you mean --train.steps?"),
    (["train", "quick", "--train.steps", "lots"], "lots"),
    (["train", "quick", "--model.headdim", "7"], "model.headdim = 7"),
    (["train", "quick", "--train.seed", "-1"], "train.seed = -1"),
    (["train", "submission-bpe", "--train.tokens-per-micro", "1024"], "SIGReg per timestep"),
    (["train", "quick", "--data.train", "/no/such/text", "--out", "/tmp/never"], "/no/such/text"),
    (["eval"], "--data"),
    (["eval", "/no/such.jepa", "--data", "x"], "/no/such.jepa"),
    (["eval", "a.jepa", "--data", "x", "--sliding", "few"], "few"),
    (["eval", "a.jepa", "--dta", "x"], "--data"),
    (["eval", "a.jepa", "--data", "x", "--carry", "--sliding", "4"], "--carry and --sliding exclude each other"),
    (["eval", "a.jepa", "--data", "x", "--adapt", "--sliding", "4"], "--sliding and --adapt exclude each other"),
    (["eval", "a.jepa", "--data", "x", "--adapt", "--carry"], "--carry and --adapt exclude each other"),
    (["eval", "a.jepa", "--data", "x", "--adapt-lr", "0.1"], "--adapt-lr has no effect without --adapt"),
    (["eval", "a.jepa", "--data", "x", "--adapt", "--adapt-lr", "high"], "high"),
    (["generate", "/no/such.jepa"], "/no/such.jepa"),
    (["generate", "no-such.jepa"], "no-such.jepa: cannot read the artifact"),
    (
        ["generate", "Once", "--prompt", "Twice"],
        "'Once': no such artifact or run, and --prompt is the prompt; leave one out",
    ),
    (["generate", "a.jepa", "Once", "--prompt", "Twice"], "--prompt and 'Once' are both a prompt; give one"),
    (["generate", "hf://name"], "hf://name: not the name of a model; give hf://owner/name"),
    (["inspect", "/no/such.jepa"], "/no/such.jepa"),
    (["inspect", "."], "no artifact.jepa here; give an artifact or the folder of a run"),
    (["inspect", "hf:/x"], "hf:/x: no such path; if it is a name on the hub, give hf://owner/name"),
    (["train", "quick", "--data.train", "HF://a/b", "--out", "/tmp/never"], "HF://a/b: no such path; if it is a name"),
    (["train", "quick", "--train.init_from", "hf:a/b", "--out", "/tmp/never"], "give hf://a/b"),
    (["pull", "https://huggingface.co/a/b"], "give hf://a/b"),
    (["resume", "hf:/owner/name"], "hf:/owner/name is a name on the hub; give a local path"),
    (["data", "info", "hf://owner/name"], "hf://owner/name is a name on the hub; give a local path"),
    (["resume", "hf://owner/name"], "hf://owner/name is a name on the hub; give a local path"),
    (["resume", "/no/such/run"], "/no/such/run"),
    (["resume", "/no/such/run", "--data.train", "x", "--train.threads=2"], "/no/such/run: no run here"),
    (["resume", "/no/such/run", "--train.seed", "3"], "--train.seed: a run keeps its settings; "),
    (["resume", "/no/such/run", "--model.tie=3"], "only accepts --data.train, --data.val, --data.tokenizer, "),
    (["resume", "/no/such/run", "--train.threads", "few"], "few"),
    (["data"], "COMMAND"),
    (["data", "info", "/no/such"], "/no/such"),
    (["data", "build", "stdlib", "--out", "/tmp/never", "--vocab", "3"], "data.vocab = 3"),
    (["data", "build", "/no/such", "--out", "/tmp/never"], "/no/such"),
    (["study", "run", "quik-jepa"], "did you mean quick-jepa?"),
    (["study", "run", "quick-jepa", "--model.tie", "9"], "--model.tie"),
    (["study", "report", "/no/such"], "no study here"),
    (["study", "rnu"], "rnu"),
]


@pytest.mark.parametrize(("words", "message"), MISTAKES, ids=[" ".join(words) for words, _ in MISTAKES])
def test_a_mistake_is_one_line_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in mistake(capsys, *words)


def test_a_damaged_artifact_is_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    blob = bytearray((run_dir / "artifact.jepa").read_bytes())
    blob[len(blob) // 2] ^= 1
    (tmp_path / "bad.jepa").write_bytes(blob)
    for words in (["eval", "--data", "stdlib"], ["generate"], ["inspect"]):
        assert "bad.jepa" in mistake(capsys, words[0], str(tmp_path / "bad.jepa"), *words[1:])


def test_a_run_is_never_overwritten(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "quick", *TINY, "--data.train", str(run_dir.parent / "text"), "--train.steps", "3"]
    assert "already holds a run" in mistake(capsys, *words, "--out", str(run_dir))


def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    _, names = build_parser()
    calls = [[name] for name in names] + [["data", "build"], ["data", "info"], ["study", "run"], ["study", "report"]]
    for words in calls:
        with pytest.raises(SystemExit) as exit_info:
            main([*words, "--help"])
        assert exit_info.value.code == 0
        printed = capsys.readouterr().out
        assert "examples:" in printed
        assert "jepamba" in printed.partition("examples:")[2]
        if words in (["train"], ["study", "run"]):
            assert "--optim.muon_lr" in printed


def test_an_unexpected_failure_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(args: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(presets, "presets", broken)
    with pytest.raises(ZeroDivisionError):
        main(["presets"])


def test_a_message_with_several_lines_is_put_on_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(args: object) -> int:
        raise UserError("first\nsecond")

    monkeypatch.setattr(presets, "presets", refused)
    assert mistake(capsys, "presets") == "jepamba: first second\n"


def test_columns() -> None:
    rows = [["", "BPB", "note"], ["a", "1.5", "x"], ["bb", "12.5", ""]]
    assert common.columns(rows) == "     BPB  note\na    1.5  x\nbb  12.5"


def test_help_comes_at_once_and_without_torch() -> None:
    # CPU time, which other programs of the machine do not change much.
    code = "import sys, time; t = time.process_time()\nfrom jepamba.cli import main\n"
    code += "try: main(['--help'])\nexcept SystemExit: pass\n"
    code += "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; print(time.process_time() - t)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 1.0


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_info:
        main(["--version"])
    assert exit_info.value.code == 0
    assert capsys.readouterr().out == f"jepamba {__version__}\n"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_that_the_parent_ignores_ends_the_command(number: signal.Signals, code: int) -> None:
    """As under `nohup jepamba … &`, where a shell hands SIGINT down ignored."""
    program = (
        "import os, time\nfrom jepamba.__main__ import run\nfrom jepamba.cli import presets\n"
        f"presets.presets = lambda args: os.kill(os.getpid(), {int(number)}) or time.sleep(60)\nrun(['presets'])"
    )
    before = signal.signal(number, signal.SIG_IGN)
    try:
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)
    finally:
        signal.signal(number, before)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_ctrl_c_during_the_imports_is_no_traceback() -> None:
    program = (
        "import os, sys, signal, types\nclass Finder:\n    def find_spec(self, name, *rest):\n"
        "        if name == 'jepamba.cli': os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Finder())\nfrom jepamba.__main__ import run\nrun(['presets'])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=50, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


@pytest.mark.slow
def test_ctrl_c_in_the_middle_of_a_run_and_then_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, out = documents(tmp_path / "text"), tmp_path / "run"
    words = ["train", "quick", *TINY, "--data.train", str(text), "--train.steps", "60", "--out", str(out)]
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        process = subprocess.Popen([sys.executable, "-m", "jepamba", *words], stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)
    metrics, deadline = out / "metrics.jsonl", time.monotonic() + 60
    while not (metrics.exists() and metrics.read_text().count('"step"') > 10) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 130, printed
    assert f"jepamba resume {out}" in printed
    assert "Traceback" not in printed
    assert not (out / "summary.json").exists()
    assert json_of(capsys, "watch", str(out))["state"] == "stopped"
    found = json_of(capsys, "resume", str(out))
    assert found["steps"] == 60
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if '"kind": "step"' in line]
    assert steps == list(range(1, 61))


def test_a_closed_pipe_is_no_error() -> None:
    done = subprocess.run(
        f"{sys.executable} -m jepamba presets submission-bpe | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("#")
    assert done.stderr == ""
