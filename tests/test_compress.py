"""Compression: any bytes come back, and the file is as small as the model says, whatever machine time it is given."""

from __future__ import annotations

import functools
import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from compress_cases import KINDS, LONG, ODD, TEXT, artifact_at, coded, tokenizer_named
from jepamba.artifact import load_artifact
from jepamba.cli import main
from jepamba.compress import Compressor, compiled, compressor, file_format
from jepamba.compress.lanes import BATCH_LANES, LaneBatch, LaneLayout, lane_count, levels, nats, weights
from jepamba.compress.tokens import to_ids
from jepamba.errors import DivergedError, UserError
from jepamba.ops.dispatch import use_kernels
from processes import ended


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


@functools.cache
def _opened(folder: Path, name: str) -> Compressor:
    return Compressor.open(artifact_at(folder / f"{name}.jepa", tokenizer_named(name), TEXT))


def parallel_nats(model: Compressor, ids: np.ndarray, plan: LaneLayout) -> float:
    """What the tokens cost by the parallel pass over all lanes: the oracle of the recurrent steps."""
    artifact, longest = model.artifact, plan.length(0)
    targets = torch.full((plan.lanes, longest), -100)
    for lane, row in enumerate(targets):
        row[: plan.length(lane)] = torch.from_numpy(ids[plan.start(lane) : plan.start(lane + 1)].astype(np.int64))
    inputs = torch.cat([torch.full((plan.lanes, 1), artifact.tokenizer.bos_id), targets[:, :-1].clamp_min(0)], 1)
    with torch.no_grad():
        h, _ = artifact.model(inputs, inputs == artifact.tokenizer.bos_id)
        logits = artifact.model.logits(h).double() / artifact.temperature
        return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))


@pytest.mark.parametrize(
    ("name", "size", "kernels"),
    [
        ("trained", 5_000, False),
        ("trained", 5_000, True),
        ("normalising", 20_000, True),
        pytest.param("normalising", 20_000, False, marks=pytest.mark.slow),
    ],
)
def test_a_file_comes_back_and_is_as_large_as_the_model_says(folder: Path, name: str, size: int, kernels: bool) -> None:
    model, data = _opened(folder, name), TEXT[:size]
    with use_kernels(kernels):
        found = model.compress(data, lanes=16)
    ids, plan = to_ids(model.artifact.tokenizer, data), LaneLayout(found.tokens, 16)
    assert (found.tokens, found.lanes) == (len(ids), 16)
    assert model.decompress(found.content) == data
    size_of_tokens = len(found.content) - file_format.OVERHEAD - 4 - found.corrections_bytes
    assert 0 <= size_of_tokens - found.model_bpb * size / 8 <= 0.001 * size_of_tokens + 8
    assert found.nats == pytest.approx(parallel_nats(model, ids, plan), rel=1e-5)
    assert found.bpb == 8 * len(found.content) / size
    assert found.bpb < 6
    # A tokenizer that keeps text whole needs no corrections; one that drops line ends needs some, and they are cheap.
    assert (found.corrections > 0) == (found.corrections_bytes > 0) == (name == "normalising")
    assert found.corrections_bytes < 0.05 * len(found.content)


def test_the_whole_file_is_within_half_a_percent_of_the_score(folder: Path) -> None:
    """The stated bar, header and all, where the tokenizer loses nothing: against the score by the same steps."""
    model, data = _opened(folder, "bytes"), LONG[:60_000]
    found = model.compress(data, lanes=16)
    ids = to_ids(model.artifact.tokenizer, data)
    score = parallel_nats(model, ids, LaneLayout(len(ids), 16)) / math.log(2) / len(data)
    head = file_format.OVERHEAD + 4  # of which 4 are the size of its one section
    assert head == 92
    assert found.corrections == found.corrections_bytes == 0
    assert score < found.bpb < 1.005 * score
    # Less the head, only rounding and the coder's last word are left.
    assert 0 <= len(found.content) - head - score * len(data) / 8 <= 0.0005 * len(found.content)


@pytest.mark.parametrize("name", KINDS)
def test_odd_bytes_come_back(folder: Path, name: str) -> None:
    model = _opened(folder, name)
    for data in ODD:
        assert model.decompress(coded(model, data)) == data


def test_what_the_model_would_make_larger_is_stored(folder: Path) -> None:
    model, noise = _opened(folder, "trained"), np.random.default_rng(0).bytes(2000)
    found = model.compress(noise, 64)
    assert (found.tokens, found.lanes, len(found.content)) == (0, 0, 2000 + file_format.OVERHEAD)
    assert model.decompress(found.content) == noise
    assert model.decompress(model.compress(b"").content) == b""


@pytest.mark.parametrize("variant", BATCH_LANES)
@pytest.mark.parametrize("count", [1, 2, 31, 32, 33, 200, 1024])
def test_lanes_cover_every_token_once(count: int, variant: int) -> None:
    plan = LaneLayout(5000, count, variant)
    assert [plan.start(0), plan.start(count)] == [0, 5000]
    lengths = [plan.length(lane) for lane in range(count)]
    assert sum(lengths) == 5000
    assert lengths == sorted(lengths, reverse=True)
    assert max(lengths) - min(lengths) <= 1
    assert [lane for batch in plan.batches for lane in batch] == list(range(count))
    assert max(len(batch) for batch in plan.batches) <= BATCH_LANES[variant]


def test_the_number_of_lanes_follows_the_size() -> None:
    assert [lane_count(n) for n in (1, 1023, 5000, 60_000, 277_000, 10**9)] == [1, 1, 9, 16, 128, 1024]


@pytest.mark.parametrize("count", [1, 3, 33])
@pytest.mark.parametrize("reset", [True, False])
def test_any_number_of_lanes(folder: Path, count: int, reset: bool) -> None:
    model = _opened(folder, "trained")
    if not reset:
        model = Compressor.open(artifact_at(folder / "on.jepa", tokenizer_named("trained"), TEXT, reset=False))
    data = TEXT[:60] + b"\0" + TEXT[700:760]
    assert model.decompress(coded(model, data, count)) == data


@pytest.mark.parametrize("count", [-1, 1025, 401])
def test_lanes_out_of_range_are_refused(folder: Path, count: int) -> None:
    with pytest.raises(UserError, match="lanes"):
        _opened(folder, "bytes").compress(TEXT[:400], count)


def test_too_much_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compressor, "MAX_BYTES", 100)
    with pytest.raises(UserError, match="at most 100"):
        _opened(folder, "bytes").compress(bytes(101))


@pytest.mark.parametrize("compiler", [True, False], ids=["compiled", "pytorch"])
def test_the_same_in_every_process_and_with_any_number_of_threads(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: bool
) -> None:
    """Five batches of lanes, three of PyTorch's steps, by the command on one thread, and here on 1, 2 and 3."""
    if not compiler:
        monkeypatch.setattr(compiled, "library", lambda *_: None)
    without = {} if compiler else {"PATH": str(tmp_path), "CXX": ""}
    model, threads = _opened(folder, "trained"), torch.get_num_threads()
    (tmp_path / "in").write_bytes(TEXT[:1500])
    words = ["compress", str(tmp_path / "in"), "--model", str(folder / "trained.jepa"), "-o", str(tmp_path / "out")]
    assert ended([*words, "--lanes", "80"], tmp_path / "process", without)[0] == 0
    content = (tmp_path / "out").read_bytes()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert model.compress(TEXT[:1500], 80).content == content
            assert model.decompress(content) == TEXT[:1500]
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_output_to_standard_output_holds_the_data_alone(
    folder: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    """Here standard output is a file; in the process of `test_a_pipe_holds_the_data_alone`, a pipe."""
    model, source = folder / "bytes.jepa", tmp_path / "in"
    content = _opened(folder, "bytes").compress(TEXT[:300]).content
    words = ["--model", str(model), "-o", "-", "--json"]
    for command, data, expected in (("compress", TEXT[:300], content), ("decompress", content, TEXT[:300])):
        source.write_bytes(data)
        assert main([command, str(source), *words]) == 0
        written = capfdbinary.readouterr()
        assert written.out == expected
        assert json.loads(written.err)["bytes"] == 300


@pytest.mark.slow
def test_a_pipe_holds_the_data_alone(folder: Path, tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.write_bytes(_opened(folder, "bytes").compress(TEXT[:300]).content)
    words = [
        sys.executable,
        "-m",
        "jepamba",
        "decompress",
        source,
        "--model",
        folder / "bytes.jepa",
        "-o",
        "-",
        "--json",
    ]
    piped = subprocess.run(words, capture_output=True, check=True)
    assert piped.stdout == TEXT[:300]
    assert json.loads(piped.stderr)["bytes"] == 300


def test_the_command_s_files_and_words(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, source, out, back = folder / "normalising.jepa", tmp_path / "in", tmp_path / "out", tmp_path / "back"
    _opened(folder, "normalising")
    source.write_bytes(TEXT[:3000])
    words = ["--model", str(model), "--json", "-o"]
    assert main(["compress", str(source), *words, str(out), "--lanes", "64"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["compressed_bytes"] == out.stat().st_size
    assert found["bpb"] == 8 * out.stat().st_size / 3000
    assert found["lanes"] == 64
    assert main(["decompress", str(out), *words, str(back)]) == 0
    assert json.loads(capsys.readouterr().out)["bytes"] == 3000
    assert back.read_bytes() == TEXT[:3000]
    assert main(["compress", str(source), "--model", str(model), "-o", str(out), "--lanes", "64"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    for path in (source, model):
        assert main(["compress", str(source), *words, str(path)]) == 2
        assert "choose another -o" in capsys.readouterr().err
    assert main(["decompress", str(source), *words, str(back)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert main(["compress", str(tmp_path / "absent"), *words, str(back)]) == 2
    assert "absent: cannot read the file to compress (No such file" in capsys.readouterr().err


def test_rounding_of_probabilities() -> None:
    """Levels are whole 64ths of a nat under the largest; the cost of that is far below what a score is read to."""
    logits = torch.randn(50, 3000, generator=torch.Generator().manual_seed(1)) * 3
    found = levels(logits)
    assert found.min() == 0
    assert torch.equal(found, ((logits.max(1, keepdim=True).values - logits) * 64).round().long().clamp_max(1065))
    p = torch.from_numpy(weights(found))
    assert torch.equal(p, p.round())
    assert p.min() >= 1
    p /= p.sum(1, keepdim=True)
    exact = logits.double().softmax(1)
    assert (exact * (exact / p).log()).sum(1).max() < 3e-5
    targets = np.arange(50)
    expected = -logits.double().log_softmax(1)[range(50), range(50)].sum()
    assert nats(logits, targets) == pytest.approx(float(expected), rel=1e-6)


def test_values_that_are_no_numbers_still_have_levels() -> None:
    found = levels(torch.tensor([[math.inf, 1.0, -math.inf], [math.nan, 0.0, 1.0]]))
    assert ((found >= 0) & (found <= 1065)).all()


def test_a_batch_reads_as_the_parallel_pass_does(folder: Path) -> None:
    model = _opened(folder, "trained").artifact
    ids = np.random.default_rng(0).integers(0, 300, (3, 20))
    ids[1, 7] = model.tokenizer.bos_id
    batch = LaneBatch(model, 3)
    with torch.no_grad():
        steps = torch.stack([batch.step(column.copy()) for column in ids.T], 1)
        whole = torch.from_numpy(ids)
        h, _ = model.model(whole, whole == model.tokenizer.bos_id)
        assert (steps - model.model.logits(h) / model.temperature).abs().max() < 1e-4


def test_the_sha256_is_the_artifact_s(folder: Path) -> None:
    model = _opened(folder, "bytes")
    assert model.sha256 == hashlib.sha256((folder / "bytes.jepa").read_bytes()).digest()
    assert load_artifact(folder / "bytes.jepa").temperature == pytest.approx(0.9)


@pytest.mark.parametrize("kernels", [False, True])
def test_a_diverged_model_is_refused(folder: Path, kernels: bool) -> None:
    model = Compressor.open(artifact_at(folder / "diverged.jepa", tokenizer_named("bytes"), TEXT))
    model.artifact.model.blocks[0].ssm_scale.master.data.fill_(math.nan)
    with use_kernels(kernels), pytest.raises(DivergedError):
        model.compress(TEXT[:300])
