"""The Python API: its figures are those of the commands, and `import jepamba` imports no PyTorch."""

from __future__ import annotations

import inspect
import json
import math
import pydoc
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

import jepamba
from hub_server import HubServer
from jepamba.artifact.heads import HEADS
from jepamba.cli import main
from jepamba.config import ConfigError
from jepamba.data import Tokens
from jepamba.errors import UserError
from jepamba.evaluate import compute_latents
from jepamba.text import ByteTokenizer
from jepamba.train.checkpoint import checkpoints, load_checkpoint
from tiny import preset, text_file, tiny

TEXT = "The import statement — naïve, 日本語 — binds names.\n\nIt has two parts; see above. " * 12


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def run_dir(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a few steps that keeps its heads."""
    folder = tmp_path_factory.mktemp(request.param)
    run = tiny(text_file(folder), data__tokenizer=request.param, data__vocab=600, train__keep_heads=True)
    jepamba.train(run, out=folder / "run")
    return folder / "run"


@pytest.fixture(scope="module")
def loaded(run_dir: Path) -> jepamba.TextModel:
    return jepamba.load(run_dir)


def evaluated(capsys: pytest.CaptureFixture[str], run_dir: Path, text: str, *flags: str) -> dict[str, Any]:
    """What `jepamba eval` prints for a file with `text`."""
    file = run_dir.parent / "scored.txt"
    file.write_text(text, encoding="utf-8", newline="")
    capsys.readouterr()
    assert main(["eval", str(run_dir / "artifact.jepa"), "--data", str(file), "--json", *flags]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


@pytest.mark.parametrize(
    ("flags", "arguments"),
    [
        ([], {}),
        (["--carry"], {"carry": True}),
        (["--sliding", "5"], {"sliding": 5}),
        (["--temperature", "1.7"], {"temperature": 1.7}),
    ],
)
def test_a_score_is_that_of_the_command(
    run_dir: Path, loaded: jepamba.TextModel, capsys: pytest.CaptureFixture[str], flags: list[str], arguments: Any
) -> None:
    expected = evaluated(capsys, run_dir, TEXT, *flags)
    score = loaded.score(TEXT, **arguments)
    found = {name: value for name, value in asdict(score).items() if name in expected}
    assert {**found, "seconds": 0} == {**expected, "seconds": 0}
    assert score.token_bits.sum() / score.bytes == pytest.approx(expected["bpb"], rel=1e-12)
    assert score.byte_bits.sum() == pytest.approx(score.token_bits.sum(), rel=1e-12)


def test_bits_by_token_are_in_the_order_of_the_text(loaded: jepamba.TextModel) -> None:
    score = loaded.score(TEXT, carry=True)
    ids = loaded.encode(TEXT)
    assert score.tokens_N.tolist() == ids[1:].tolist()
    assert b"".join(score.token_bytes) == TEXT.encode()
    with torch.no_grad():
        logits_TV = loaded.model.logits(loaded.model(ids[None])[0][0]) / loaded.temperature
    nats_N = torch.nn.functional.cross_entropy(logits_TV[:-1], ids[1:], reduction="none")
    np.testing.assert_allclose(score.token_bits, nats_N.numpy() / math.log(2), rtol=1e-3, atol=1e-3)


def test_a_token_s_bits_are_divided_over_its_bytes() -> None:
    score = jepamba.TextScore(
        *[0.0, 0.0, 0.0, 0, 0, 0, "original", None, "plain", True, 1.0, 0.0],  # type: ignore[arg-type]
        tokens_N=np.zeros(5, np.uint16),
        token_bytes=[b"", b"abc", b"", b"d", b""],
        token_bits=np.array([1.0, 2.0, 4.0, 8.0, 16.0]),
    )
    assert score.byte_bits.tolist() == [1.0, 1.0, 1.0, 28.0]


@pytest.mark.parametrize("arguments", [{}, {"carry": True}, {"sliding": 5}], ids=str)
def test_lists_of_texts_have_the_scores_of_the_texts(loaded: jepamba.TextModel, arguments: dict[str, Any]) -> None:
    texts = [TEXT[:50], "A", TEXT[100:], TEXT[:300]]
    for found, text in zip(loaded.score(texts, **arguments), texts, strict=True):
        alone = loaded.score(text, **arguments)
        exact = ("bytes", "tokens", "counted", "mode", "temperature", "token_bytes", "unrestored_bytes")
        assert all(getattr(found, name) == getattr(alone, name) for name in exact)
        assert found.bpb == pytest.approx(alone.bpb, rel=1e-5)
        np.testing.assert_allclose(found.token_bits, alone.token_bits, rtol=1e-3, atol=1e-3)
    assert loaded.score([], **arguments) == []
    with pytest.raises(jepamba.UserError, match="fewer than 2 tokens"):
        loaded.score(["text", ""], **arguments)
    with pytest.raises(jepamba.UserError, match="temperature 0: must be between"):
        loaded.score(["text"], temperature=0, **arguments)


def test_lists_of_texts_give_lists(loaded: jepamba.TextModel) -> None:
    texts = [TEXT[:50], "", "A", TEXT[100:]]
    for kind in ("h", "z"):
        for latents, text in zip(loaded.latents(texts, kind), texts, strict=True):  # type: ignore[call-overload]
            assert len(latents) == len(loaded.encode(text))
            torch.testing.assert_close(latents, loaded.latents(text, kind), rtol=1e-4, atol=1e-4)  # type: ignore[call-overload]
    assert loaded.latents([]) == []
    prompts = ["The ", "The ", "A"]
    written = loaded.generate(prompts, 8, seed=5)
    assert written == [loaded.generate(prompt, 8, seed=5 + index) for index, prompt in enumerate(prompts)]
    assert loaded.generate([]) == []


def test_a_model_shows_what_it_is(loaded: jepamba.TextModel) -> None:
    symbols = "256 bytes" if loaded.tokenizer.kind == "bytes" else f"{loaded.tokenizer.vocab_size} sentencepiece"
    assert re.fullmatch(rf"TextModel\([\d,]+ parameters, {symbols} tokens, on cpu\)", repr(loaded))


def test_text_that_is_no_document_is_refused(loaded: jepamba.TextModel) -> None:
    with pytest.raises(jepamba.UserError, match="fewer than 2 tokens"):
        loaded.score("")
    with pytest.raises(jepamba.UserError, match="give a list with a text for each document"):
        loaded.score("a\0b")
    with pytest.raises(jepamba.UserError, match="exclude each other"):
        loaded.score("text", carry=True, sliding=2)
    with pytest.raises(jepamba.UserError, match="use 'h' or 'z'"):
        loaded.latents("text", "y")  # type: ignore[call-overload]


def test_generated_text_is_that_of_the_command(
    run_dir: Path, loaded: jepamba.TextModel, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "--prompt",
        "The ",
        "--tokens",
        "20",
        "--seed",
        "3",
        "--temperature",
        "0.8",
        "--top-k",
        "50",
        "--top-p",
        "0.9",
    ]
    assert main(["generate", str(run_dir), *words, "--json"]) == 0
    expected = json.loads(capsys.readouterr().out.splitlines()[-1])["text"]
    sampling: dict[str, Any] = {"seed": 3, "temperature": 0.8, "top_k": 50, "top_p": 0.9}
    assert loaded.generate("The ", max_new_tokens=20, **sampling) == expected != ""
    pieces = loaded.stream("The ", 20, **sampling)
    assert next(pieces) + "".join(pieces) == expected


def test_every_token_has_a_latent_and_z_predicts_the_next(loaded: jepamba.TextModel) -> None:
    ids = loaded.encode(TEXT)
    tokens = Tokens([ids.numpy().astype(np.uint16)], loaded.tokenizer, len(TEXT.encode()), len(TEXT.encode()))
    for carry in (False, True):
        h_TD = loaded.latents(TEXT, carry=carry)
        assert h_TD.shape == (len(ids), loaded.config.d_model)
        expected = compute_latents(loaded.model, tokens, 32, carry=carry).latents
        torch.testing.assert_close(h_TD[:-1], expected, rtol=1e-4, atol=1e-4)
    z_TD = loaded.latents(TEXT, "z", carry=True)
    with torch.no_grad():
        torch.testing.assert_close(z_TD, loaded.heads.project(h_TD[None])[0], rtol=1e-5, atol=1e-5)
        first, second = loaded.heads.rollout(z_TD[None])
    torch.testing.assert_close(loaded.predict_next_latent(z_TD), first[0])
    torch.testing.assert_close(loaded.predict_next_latent(loaded.predict_next_latent(z_TD)), second[0])
    torch.testing.assert_close(loaded.predict_next_latent(z_TD[3]), first[0, 3])
    with pytest.raises(jepamba.UserError, match=r"z has the shape \(2, 7\): the last dimension must be"):
        loaded.predict_next_latent(torch.zeros(2, 7))
    with pytest.raises(TypeError):
        loaded.predict_next_latent([z_TD])  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("run_dir", ["bytes"], indirect=True)
def test_the_model_compiles(run_dir: Path) -> None:
    """As a plain module, without a break of the graph; the compiler's own code generation is left out.

    In a process of its own, because the tests' checks of annotations cannot be traced.
    """
    code = (
        "import jepamba, sys, torch\nloaded = jepamba.load(sys.argv[1])\n"
        "ids_BT = loaded.encode('The text ' * 9)[None]\n"
        "compiled = torch.compile(loaded.model, backend='eager', fullgraph=True)\n"
        "with torch.no_grad(): torch.testing.assert_close(compiled(ids_BT)[0], loaded.model(ids_BT)[0])\n"
    )
    subprocess.run([sys.executable, "-c", code, str(run_dir)], check=True)


def test_every_form_of_a_path_loads_the_same_model(
    run_dir: Path, loaded: jepamba.TextModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = loaded.score(TEXT).bpb
    assert jepamba.load(run_dir / "artifact.jepa").score(TEXT).bpb == expected
    names = ("artifact.jepa", HEADS)
    files = {name: (run_dir / name).read_bytes() for name in names}
    repository = {"main": {**files, "small/other.jepa": files["artifact.jepa"]}}
    with HubServer({"some/model": repository}) as hub:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        pulled = jepamba.load("hf://some/model")
        assert pulled.score(TEXT).bpb == expected
        assert torch.equal(pulled.latents("text", "z"), loaded.latents("text", "z"))
        assert jepamba.load("hf://some/model@main/small/other.jepa").score(TEXT).bpb == expected
        for name, message in {
            "hf://some/model/no.jepa": "no no.jepa in this repository; its artifacts: artifact.jepa, small/other.jepa",
            "hf://some/other": "there is no such model, or it is private",
            "hf://model": "hf://model: not the name of a model",
        }.items():
            with pytest.raises(jepamba.UserError, match=message):
                jepamba.load(name)


def test_a_checkpoint_scores_as_its_artifact_does(run_dir: Path, loaded: jepamba.TextModel, tmp_path: Path) -> None:
    newest = checkpoints(run_dir / "checkpoints")[-1]
    trained = jepamba.load(newest)
    assert trained.temperature == 1
    assert trained.score(TEXT).bpb == loaded.score(TEXT, temperature=1.0).bpb
    torch.testing.assert_close(trained.latents(TEXT, "z"), loaded.latents(TEXT, "z"))
    masters, _ = load_checkpoint(newest)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, masters[f"weights/model.{name}"])
    # Without the artifact, as in a run that still trains, the tokenizer is that of the training text.
    moved = tmp_path / "run"
    shutil.copytree(run_dir, moved, ignore=shutil.ignore_patterns("artifact.jepa"))
    assert jepamba.load(moved / "checkpoints" / newest.name).score(TEXT).bpb == trained.score(TEXT).bpb
    with pytest.raises(jepamba.UserError, match=r"no artifact\.jepa here"):
        jepamba.load(moved)
    state = moved / "checkpoints" / newest.name / "state.json"
    for wrong, message in (({"data": {"tokenizer": "other"}}, "another tokenizer"), ({"data": None}, "does not fit")):
        state.write_text(json.dumps({**json.loads((newest / "state.json").read_text()), **wrong}))
        with pytest.raises(jepamba.UserError, match=message):
            jepamba.load(state.parent)
    config = moved / "config.toml"
    config.write_text(config.read_text().replace("n_layer = 2", "n_layer = 3"))
    shutil.copy(newest / "state.json", state)
    with pytest.raises(jepamba.UserError, match="does not fit the configuration of its run"):
        jepamba.load(state.parent)


@pytest.mark.parametrize("run_dir", ["bytes"], indirect=True)
def test_models_without_heads_say_so(run_dir: Path, tmp_path: Path) -> None:
    shutil.copy(run_dir / "artifact.jepa", tmp_path)
    with pytest.raises(jepamba.UserError, match=r"train with train\.keep_heads on"):
        jepamba.load(tmp_path).latents("text", "z")
    run = tiny(text_file(tmp_path), jepa__weight=0.0, jepa__sigreg_weight=0.0)
    jepamba.train(run, out=tmp_path / "plain")
    trained = jepamba.load(checkpoints(tmp_path / "plain" / "checkpoints")[-1])
    with pytest.raises(jepamba.UserError, match="the run has no JEPA heads"):
        trained.predict_next_latent(torch.zeros(32))


def test_train_takes_presets_files_and_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    settings = preset(tmp_path, tiny(text_file(tmp_path)))
    # Imported in any order, `jepamba.train` is the package of that name, and it can be called.
    import jepamba.train

    trained = jepamba.train(settings, train={"steps": 2, "seed": 9}, model={"n_layer": 1})
    assert trained.config.n_layer == 1
    assert json.loads((tmp_path / "runs/tiny/summary.json").read_text())["steps"] == 2
    assert (tmp_path / "runs/tiny/report.html").exists()
    jepamba.train(tiny(tmp_path / "topics.txt"), train={"steps": 1})
    jepamba.train(tiny(tmp_path / "topics.txt"), train={"steps": 1})
    assert (tmp_path / "runs/run-2/artifact.jepa").exists()
    with pytest.raises(ConfigError, match=r"unknown setting train\.stps"):
        jepamba.train("quick", train={"stps": 2})
    with pytest.raises(ConfigError, match=r"unknown section \[steps\]"):
        jepamba.train("quick", steps={"train": 2})
    with pytest.raises(jepamba.UserError, match="already holds a run"):
        jepamba.train(settings, out=tmp_path / "runs/tiny")


def test_import_is_fast_and_knows_its_names() -> None:
    from jepamba import TextModel, TextScore, UserError, load

    code = (
        "import sys, time; t = time.process_time()\nimport jepamba\nassert dir(jepamba) and jepamba.__version__\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules; assert time.process_time() - t < 0.5"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert all(map(callable, (jepamba.train, jepamba.resume, load, TextScore, UserError)))
    assert {*jepamba.__all__} <= {*dir(jepamba)}
    assert TextModel is jepamba.TextModel
    with pytest.raises(AttributeError, match="module 'jepamba' has no attribute 'nothing'"):
        _ = jepamba.nothing


def test_a_text_is_one_document_whatever_the_tokenizer() -> None:
    from jepamba.data.tokens import tokens_in_memory

    for separator in (True, False):
        tokens = tokens_in_memory(["ab"], ByteTokenizer(separator))
        assert tokens.read(0, len(tokens)).tolist() == [0] * separator + [97, 98]
        assert (tokens.text_bytes, tokens.recorded_bytes, tokens.loss) == (2, 2, "")


@pytest.mark.parametrize("device", ["tpu", "cuda:99", "meters"])
def test_a_device_that_is_not_there_is_one_line(device: str) -> None:
    with pytest.raises(UserError, match=f"^device {device}: not on this machine .*; try 'cpu'$"):
        jepamba.load(device=device)


def test_arguments_of_another_type_are_refused_with_what_to_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    # The checks of annotations in `make test-all` would refuse them first, with a message that no user sees.
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    lm = jepamba.load()
    calls: list[tuple[Callable[..., Any], list[Any], dict[str, Any], str]] = [
        (lm.score, [b"abc"], {}, "text is of type bytes: pass a str or a list of str, as of .decode()"),
        (lm.score, [("a", "b")], {}, "text is of type tuple: pass a str or a list of str"),
        (lm.score, [3], {}, "text is of type int: pass a str or a list of str"),
        (lm.score, [None], {}, "text is of type NoneType: pass a str or a list of str"),
        (lm.score, [["a", 3]], {}, "text[1] is of type int: pass a str or a list of str"),
        (lm.score, ["x"], {"temperature": "a"}, "temperature is of type str: pass a float"),
        (lm.score, ["x"], {"sliding": 1.5}, "sliding is of type float: pass an int"),
        (lm.latents, [b"abc"], {}, "text is of type bytes: pass a str or a list of str, as of .decode()"),
        (lm.generate, [("a",)], {}, "prompt is of type tuple: pass a str or a list of str"),
        (lm.generate, ["x"], {"max_new_tokens": "a"}, "max_new_tokens is of type str: pass an int"),
        (lm.stream, [["x"]], {}, "prompt is of type list: pass one str"),
        (lm.stream, ["x"], {"top_p": None}, "top_p is of type NoneType: pass a float"),
        (lm.encode, [["x"]], {}, "text is of type list: pass one str"),
        (jepamba.train, ["quick"], {"steps": 3}, "steps is a setting of the section train: pass train={'steps': 3}"),
        (
            jepamba.train,
            ["quick"],
            {"colour": 3},
            "colour = 3: pass a dictionary of settings, as in train={'steps': 200}",
        ),
        (jepamba.resume, ["runs"], {"steps": 3}, "steps is a setting of the section train: pass train={'steps': 3}"),
        (jepamba.train, [3], {}, "preset is of type int: pass the name of a preset, a file, or a Run"),
    ]
    for call, words, arguments, message in calls:
        with pytest.raises(TypeError) as found:
            call(*words, **arguments)
        assert str(found.value) == message
    for sliding in (-1, 10**6):
        with pytest.raises(UserError, match=f"^sliding = {sliding}: must be 0 "):
            lm.score("text", sliding=sliding)
    assert lm.score("text", temperature=np.float32(1.0)).bpb == lm.score("text", temperature=1).bpb


def test_train_shows_its_signature_and_what_it_does() -> None:
    import jepamba.api

    assert list(inspect.signature(jepamba.train).parameters) == ["preset", "out", "sections"]
    assert inspect.signature(jepamba.train).return_annotation is jepamba.TextModel
    assert "Folder of the run. None: `runs/`" in pydoc.render_doc(jepamba.train)
    assert inspect.getdoc(type(jepamba.train).__call__) == inspect.getdoc(jepamba.api.train)


def test_resume_with_a_new_budget_returns_the_new_model(run_dir: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run_dir, tmp_path / "run")
    before = json.loads((folder / "summary.json").read_text())["steps"]
    lm = jepamba.resume(str(folder), train={"steps": before + 2})
    assert json.loads((folder / "summary.json").read_text())["steps"] == before + 2
    assert lm.score(TEXT).bpb == jepamba.load(folder).score(TEXT).bpb != jepamba.load(run_dir).score(TEXT).bpb
    assert (folder / "report.html").exists()
    with pytest.raises(UserError, match="d_model"):
        jepamba.resume(folder, model={"d_model": 64})
