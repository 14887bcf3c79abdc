"""Training as a whole: budgets, the log, and a resume that repeats the uninterrupted run to the bit."""

import itertools
import json
import math
import shutil
import signal
import tomllib
from collections.abc import Callable
from pathlib import Path
from pydoc_data import topics
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import jepamba
from jepamba.artifact import load_artifact
from jepamba.config import ConfigError, Run, from_dict, with_settings
from jepamba.data import corpus
from jepamba.errors import UserError
from jepamba.jepa import LossTerms
from jepamba.presets import dump_toml, load_preset
from jepamba.train import resolve, resume, train
from jepamba.train.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from jepamba.train.device import choose_device
from jepamba.train.loop import Loop
from jepamba.train.measure import term_gradients
from jepamba.train.state import TrainState
from jepamba.train.step import Trainer, add_gradients
from jepamba.train.stop import StopRequest
from tiny import opened

TIMED = ("seconds", "tokens_per_s", "memory_mb")
"""Fields of a step's record that follow the clock."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen topics of Python's language reference, NUL-separated."""
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\0".join(body for _, body in sorted(topics.topics.items())[:16]))
    return path


@pytest.fixture(scope="module")
def small(text: Path) -> Run:
    """A run that takes a second."""
    return from_dict(
        {
            "data": {"train": str(text), "tokenizer": "bytes", "seq_len": 32, "cache": str(text.parent / "cache")},
            "model": {
                "embed_dim": 16,
                "d_model": 32,
                "n_layer": 2,
                "headdim": 16,
                "d_state": 8,
                "chunk_size": 16,
                "mlp_mult": 2.0,
            },
            "jepa": {"rollout_steps": 2, "sigreg_projections": 16, "weight": 0.1, "sigreg_weight": 0.05},
            "train": {
                "steps": 8,
                "tokens_per_step": 256,
                "tokens_per_micro": 128,
                "seed": 3,
                "checkpoint_seconds": 0.0,
            },
            "eval": {
                "calibrate_tokens": 512,
                "diagnostics_tokens": 512,
                "sample_tokens": 4,
                "prompts": ["The "],
                "tokens_per_batch": 2048,
            },
        }
    )


@pytest.fixture(scope="module")
def begun(small: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of two steps, to read or to copy."""
    out = tmp_path_factory.mktemp("begun") / "run"
    train(with_settings(small, {"train.steps": 2}), out)
    return out


def records(out: Path, kind: str = "step") -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def losses(out: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in record.items() if key not in TIMED} for record in records(out)]


def test_a_run_leaves_a_whole_folder_and_two_runs_are_equal(small: Run, tmp_path: Path) -> None:
    small = with_settings(small, {"train.val_every": 4, "train.val_tokens": 1000, "train.terms_every": 3})
    summary = train(small, tmp_path / "a", preset="small")
    train(small, tmp_path / "b", preset="small")
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert len(losses(tmp_path / "a")) == 8
    assert {path.name for path in (tmp_path / "a").iterdir()} == {
        "artifact.jepa",
        "checkpoints",
        "config.toml",
        "metrics.jsonl",
        "summary.json",
    }
    assert json.loads((tmp_path / "a" / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["steps"] == 8
    assert summary["tokens"] == 8 * 256
    assert summary["parameters"]["kept"] == sum(
        count
        for part, count in summary["parameters"]["parts"].items()
        if part not in ("projector", "predictor", "predictor projection")
    )
    assert (tmp_path / "a" / "artifact.jepa").stat().st_size == summary["artifact_bytes"]
    assert [record["step"] for record in records(tmp_path / "a", "terms")] == [0, 3, 6]
    assert all(record["grad_jepa"] > 0 for record in records(tmp_path / "a", "terms"))
    assert [(r["step"], r["final"]) for r in records(tmp_path / "a", "val")] == [(4, False), (8, True)]
    written = load_preset(str(tmp_path / "a" / "config.toml"))
    assert written == resolve(small, corpus(small.data))
    assert written.model.vocab_size == 256


def test_validations_at_shares_of_the_budget(small: Run, text: Path, tmp_path: Path) -> None:
    small = with_settings(small, {"train.val_every": 0.3, "train.val_tokens": 500})
    train(small, tmp_path / "run")
    # After the first steps beyond 0.3 × 8, 0.6 × 8 and 0.9 × 8, but not at the end, where the artifact is scored.
    assert [(r["step"], r["final"]) for r in records(tmp_path / "run", "val")] == [(3, False), (5, False), (8, True)]
    state = opened(with_settings(small, {"train.steps": 0, "train.seconds": 10.0, "train.val_every": 0.1}))
    found = []
    for state.counters.seconds in (0.0, 0.99, 1.0, 3.0, 6.0, 7.0, 9.99):
        found.append(state.validations_due())
    assert found == [0, 0, 1, 3, 6, 7, 9]


def test_a_validation_that_was_stopped_is_made_up_for(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The checkpoint of a stopped run knows which validation it still owes."""
    small = with_settings(small, {"train.val_every": 0.3, "train.val_tokens": 500})
    train(small, tmp_path / "whole")

    def stopped(self: Loop, stop: StopRequest, report: object, limit: int) -> signal.Signals:
        return signal.SIGTERM

    with monkeypatch.context() as patch:
        patch.setattr(Loop, "_validate", stopped)
        with pytest.raises(SystemExit):
            train(small, tmp_path / "cut")
    assert [path.name for path in checkpoints(tmp_path / "cut/checkpoints")] == ["step-000000003"]
    resume(tmp_path / "cut")
    whole, cut = ([(r["step"], r["bpb"]) for r in records(tmp_path / name, "val")] for name in ("whole", "cut"))
    assert whole == cut


def test_measuring_terms_and_validating_change_nothing(small: Run, tmp_path: Path) -> None:
    """Looking at a run must not move it; BatchNorm's running statistics would show a slip."""
    small = with_settings(small, {"jepa.projector": "mlp-batchnorm"})
    train(small, tmp_path / "plain")
    train(
        with_settings(small, {"train.val_every": 2, "train.val_tokens": 500, "train.terms_every": 2}),
        tmp_path / "watched",
    )
    assert losses(tmp_path / "plain") == losses(tmp_path / "watched")
    weights = [load_checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1])[0] for name in ("plain", "watched")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


RESUMABLE = [
    {},
    {"data.shuffle": False, "data.reset": False, "quant.qat_fraction": 0.5, "jepa.sigreg_ramp": 0.3},
    {"jepa.projector": "mlp-batchnorm", "jepa.sigreg_pool": "timestep", "jepa.sigreg_timesteps": 8},
    {"optim.train_conv": False, "train.masters": "bf16", "model.self_skip": True, "optim.decay_ssm": True},
    {"optim.ghost_steps": 2, "jepa.target_ema": 0.8},
    {"optim.ghost_steps": 2, "jepa.weight": 0.0, "jepa.sigreg_weight": 0.0},
    {
        "optim.ghost_steps": 2,
        "optim.ghost_keep_moments": False,
        "train.terms_every": 2,
        "train.val_every": 3,
        "train.val_tokens": 500,
    },
    {"train.val_every": 0.3, "train.val_tokens": 500, "jepa.projector": "none", "jepa.predictor_mult": 0},
]


@pytest.mark.parametrize(
    "settings",
    [
        *RESUMABLE[:7:3],
        *(pytest.param(s, marks=pytest.mark.slow) for i, s in enumerate(RESUMABLE) if i not in (0, 3, 6)),
    ],
    ids=lambda s: "+".join(s) or "default",
)
def test_resume_equals_the_uninterrupted_run(small: Run, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A run whose budget is raised from a checkpoint on, as if it had been killed there."""
    small = with_settings(small, {**settings, "train.checkpoint_every": 3, "train.keep_checkpoints": 9})
    train(small, tmp_path / "whole")
    out = tmp_path / "cut"
    shutil.copytree(tmp_path / "whole", out)
    # What a kill in step 5 leaves: the log up to there and a line cut short, the checkpoint of step 3, no artifact.
    for done in checkpoints(out / "checkpoints")[1:]:
        for file in done.iterdir():
            file.unlink()
        done.rmdir()
    (out / "artifact.jepa").unlink()
    (out / "summary.json").unlink()
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    cut = next(
        i for i, line in enumerate(lines) if json.loads(line)["kind"] == "step" and json.loads(line)["step"] == 5
    )
    (out / "metrics.jsonl").write_text("".join(lines[: cut + 1]) + lines[cut + 1][:20])
    resume(out)
    assert losses(out) == losses(tmp_path / "whole")
    assert (out / "artifact.jepa").read_bytes() == (tmp_path / "whole" / "artifact.jepa").read_bytes()


def test_a_finished_run_goes_on_with_a_new_budget(
    small: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a run that had this budget from its start, if no step before depended on the budget."""
    settings = with_settings(small, {"optim.warmdown": 0.2, "quant.qat_fraction": 0.0, "train.steps": 8})
    train(settings, tmp_path / "whole")
    out = tmp_path / "longer"
    train(with_settings(settings, {"train.steps": 4}), out, preset="mine")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"train\.steps = 4: this run has already trained that long"):
        resume(out, {"train.steps": 4})
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    capsys.readouterr()
    assert resume(out, {"train.steps": 8})["steps"] == 8
    said = "new budget, train.steps = 8: 50% of it is spent; the learning rate is 100% of its peak from here"
    assert said in capsys.readouterr().err
    assert said in [record["what"] for record in records(out, "event")]
    assert losses(out) == losses(tmp_path / "whole")
    assert (out / "artifact.jepa").read_bytes() == (tmp_path / "whole" / "artifact.jepa").read_bytes()
    assert (out / "config.toml").read_text() == "# preset: mine\n" + (tmp_path / "whole" / "config.toml").read_text()


def test_a_budget_in_tokens_ends_with_the_step_that_reaches_it(small: Run, tmp_path: Path) -> None:
    """The learning rate falls over the tokens."""
    settings = {"train.tokens": 5 * small.train.tokens_per_step - 1, "optim.warmdown": 1.0}
    small = with_settings(small, settings)
    summary = train(small, tmp_path / "run")
    assert summary["tokens"] == 5 * small.train.tokens_per_step
    found = records(tmp_path / "run")
    tokens = [record["tokens"] - small.train.tokens_per_step for record in found]
    assert [record["lr_scale"] for record in found] == pytest.approx([1 - n / small.train.tokens for n in tokens])


def test_a_budget_in_seconds_is_kept_and_warms_down(small: Run, tmp_path: Path) -> None:
    small = with_settings(small, {"train.steps": 0, "train.seconds": 1.5, "optim.warmdown": 0.5})
    summary = train(small, tmp_path / "run")
    steps = records(tmp_path / "run")
    longest = max(after["seconds"] - before["seconds"] for before, after in itertools.pairwise(steps))
    assert 1.5 <= summary["seconds"] <= 1.5 + max(longest, 0.5)
    scales = [record["lr_scale"] for record in steps]
    assert scales[0] == 1.0
    assert scales == sorted(scales, reverse=True)
    assert scales[-1] < 0.5


def test_qat_switches_on_for_the_last_share(small: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    small = with_settings(small, {"quant.qat_fraction": 0.25})
    text = corpus(small.data)
    state = TrainState(resolve(small, text), text, choose_device(small.train))
    trainer, seen = Trainer(state), []
    for step in range(8):
        trainer.train_step(step / 8)
        seen.append(state.model.fake_quantized)
    assert seen == [False] * 6 + [True] * 2


def test_ghost_warmup_primes_moments_and_puts_the_rest_back(small: Run, tmp_path: Path) -> None:
    fresh = with_settings(small, {"train.steps": 1})
    ghost = with_settings(small, {"train.steps": 1, "optim.ghost_steps": 4})
    back = with_settings(small, {"train.steps": 1, "optim.ghost_steps": 4, "optim.ghost_keep_moments": False})
    for name, run in (("fresh", fresh), ("ghost", ghost), ("back", back)):
        train(run, tmp_path / name)
    first = {name: losses(tmp_path / name)[0] for name in ("fresh", "ghost", "back")}
    # The first step reads the same data with the same weights: same losses.
    assert first["ghost"]["ce"] == first["fresh"]["ce"]
    assert first["back"] == first["fresh"]
    state = {
        name: load_checkpoint(checkpoints(tmp_path / name / "checkpoints")[-1])[0]
        for name in ("fresh", "ghost", "back")
    }
    assert all(torch.equal(value, state["back"][key]) for key, value in state["fresh"].items())
    moment = "optim/exp_avg/model.head.vocab_bias.master"
    assert not torch.equal(state["ghost"][moment], state["fresh"][moment])
    assert state["ghost"]["optim/step/model.head.vocab_bias.master"].item() == 1


def test_accumulation_does_not_change_the_token_loss_or_its_gradient(small: Run) -> None:
    given = {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "optim.grad_clip": 0.0, "train.precision": "fp32"}
    small = with_settings(small, given)
    text = corpus(small.data)
    found = []
    for tokens in (32, 128, 256):
        run = resolve(with_settings(small, {"train.tokens_per_micro": tokens}), text)
        state = TrainState(run, text, choose_device(run.train))
        found.append(Trainer(state).train_step(0.0))
    for other in found[1:]:
        assert other["ce"] == pytest.approx(found[0]["ce"], rel=1e-5)
        assert other["grad_norm"] == pytest.approx(found[0]["grad_norm"], rel=1e-4)


def test_gradients_laid_out_otherwise_are_added_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """And in the layout of what they are added to, without which no pair is added in one launch with the others."""
    leaves = [torch.randn(3, 5, requires_grad=True), torch.randn(5, requires_grad=True)]
    factors, original, pairs = (torch.randn(5, 3), torch.randn(5)), torch._foreach_add_, list[tuple[Any, Any]]()

    def noted(there: list[torch.Tensor], fresh: list[torch.Tensor]) -> None:
        pairs.extend((a.stride(), b.stride()) for a, b in zip(there, fresh, strict=True))
        original(there, fresh)

    monkeypatch.setattr(torch, "_foreach_add_", noted)
    for times in (1, 2, 3):
        add_gradients((leaves[0].T * factors[0]).sum() + leaves[1] @ factors[1], leaves)
        for leaf, truth in zip(leaves, (factors[0].T, factors[1]), strict=True):
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad, times * truth)
    assert pairs == 2 * [((5, 1), (5, 1)), ((1,), (1,))]


def test_untrained_convolutions_are_left_out_of_the_step(small: Run) -> None:
    text, norms = corpus(small.data), list[float]()
    for train_conv in (True, False):
        run = with_settings(small, {"optim.train_conv": train_conv})
        state = TrainState(resolve(run, text), text, choose_device(run.train))
        trainer = Trainer(state)
        before = {name: p.detach().clone() for name, p in state.modules.named_parameters()}
        term_gradients(state, 0.0)
        norms.append(trainer.train_step(0.0)["grad_norm"])
        for name, p in state.modules.named_parameters():
            if "conv" in name:
                assert torch.equal(p, before[name]) is not train_conv, name
                assert (p.grad is not None) is train_conv, name
    assert norms[1] < norms[0]


def test_term_gradients_add_up(small: Run) -> None:
    """With one term left, its norm is the whole gradient's over the kept parameters."""
    small = with_settings(small, {"jepa.weight": 0.0, "jepa.sigreg_weight": 0.0, "train.tokens_per_micro": 256})
    text = corpus(small.data)
    state = TrainState(resolve(small, text), text, choose_device(small.train))
    norms = term_gradients(state, 0.0)
    assert norms["grad_jepa"] == norms["grad_sigreg"] == 0.0
    assert norms["grad_ce"] == pytest.approx(Trainer(state).train_step(0.0)["grad_norm"], rel=1e-5)


def test_the_logged_loss_is_the_differentiated_total(small: Run) -> None:
    """With several micro-batches, and with weights that differ from 1 for every term."""
    weights = {"jepa.ce_weight": 0.7, "jepa.weight": 0.3, "jepa.sigreg_weight": 0.2, "jepa.z_loss": 0.01}
    weights |= {"jepa.vicreg_weight": 0.4}
    small = with_settings(small, {**weights, "train.tokens_per_micro": 256, "train.tokens_per_step": 512})
    text = corpus(small.data)
    trainer = Trainer(TrainState(resolve(small, text), text, choose_device(small.train)))
    record = trainer.train_step(0.0)
    assert min(record[name] for name in ("ce", "z_loss", "jepa", "sigreg", "vicreg")) > 0
    assert record["loss"] == pytest.approx(float(trainer.loss_sums[LossTerms._fields.index("total")]), rel=1e-6)


def test_the_loss_falls_on_real_text(small: Run, tmp_path: Path) -> None:
    train(with_settings(small, {"train.steps": 80}), tmp_path / "run")
    ce = [record["ce"] for record in records(tmp_path / "run")]
    assert sum(ce[-20:]) / 20 < 0.72 * ce[0]


def test_refusals_name_what_and_where(small: Run, begun: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run here.*jepamba train"):
        resume(tmp_path / "run")
    with pytest.raises(UserError, match=r"already holds a run.*jepamba resume"):
        train(small, begun)
    with pytest.raises(ConfigError, match=r"vocab_size"):
        resolve(with_settings(small, {"data.tokenizer": "bpe", "model.vocab_size": 100}), corpus(small.data))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="no GPU"):
            choose_device(with_settings(small, {"train.device": "cuda"}).train)


def test_resume_on_other_data_is_refused(small: Run, tmp_path: Path) -> None:
    out, mine = tmp_path / "run", tmp_path / "mine.txt"
    mine.write_text("\0".join(body for _, body in sorted(topics.topics.items())[40:80]))
    small = with_settings(small, {"data.train": str(mine)})
    train(small, out)
    mine.write_text("\0".join(body for _, body in sorted(topics.topics.items())[50:80]))
    with pytest.raises(
        UserError, match=r"number of training tokens is not what this run started with \([0-9,]+, then "
    ):
        resume(out)


def test_a_run_goes_on_where_its_files_are_now(small: Run, tmp_path: Path) -> None:
    """The same text in another place is accepted; other text is not, be it of the same length; nor another setting."""
    out, text, held_out = tmp_path / "run", tmp_path / "text.txt", tmp_path / "held-out.txt"
    bodies = [body for _, body in sorted(topics.topics.items())]
    text.write_text("\0".join(bodies[40:70]))
    held_out.write_text("\0".join(bodies[70:74]))
    small = with_settings(small, {"data.train": str(text), "data.val": str(held_out), "train.steps": 2})
    train(small, out)
    before = (out / "config.toml").read_bytes()
    moved = {"data.train": str(text.rename(tmp_path / "moved.txt")), "data.cache": str(tmp_path / "cache")}
    with pytest.raises(UserError, match=r"text\.txt: no such file .* as data\.train; .*run --data\.train PATH`"):
        resume(out)
    assert resume(out, moved)["steps"] == small.train.steps
    assert (out / "config.toml").read_bytes() == before
    files = ("training", "data.train", tmp_path / "moved.txt"), ("validation", "data.val", held_out)
    for name, where, found in files:
        other = tmp_path / f"other-{name}.txt"
        other.write_bytes(found.read_bytes().replace(b"the", b"thE", 1))
        with pytest.raises(UserError, match=f"the {name} text is not what this run started with: put the files back"):
            resume(out, moved | {where: str(other)})
    for name in ("train.seed", "data.seq_len", "nonsense"):
        with pytest.raises(
            ConfigError, match=f"{name} cannot change in a resumed run; these settings can: data.train, "
        ):
            resume(out, {name: 3})


def test_a_relative_path_is_that_of_the_folder_in_which_the_run_was_started(
    small: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.txt").write_text("\0".join(body for _, body in sorted(topics.topics.items())[40:70]))
    train(with_settings(small, {"data.train": "text.txt", "train.steps": 2}), Path("run"))
    (tmp_path / "run" / "artifact.jepa").unlink()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    lost = r"^text\.txt: no such file or folder; the run names it as data\.train, relative to the folder .*was started"
    with pytest.raises(UserError, match=lost + r"; say where it is .*`jepamba resume \.\./run --data\.train PATH`"):
        resume(Path("../run"))
    with pytest.raises(UserError, match=lost + ", and the checkpoint has no tokenizer"):
        jepamba.load(checkpoints(Path("../run/checkpoints"))[-1])
    with pytest.raises(UserError, match=r"^other\.txt: no such file or folder$"):
        resume(Path("../run"), {"data.train": "other.txt"})
    assert resume(Path("../run"), {"data.train": "../text.txt"})["steps"] == 2


def test_a_checkpoint_of_other_data_is_refused(small: Run) -> None:
    text = corpus(small.data)
    state = TrainState(resolve(small, text), text, choose_device(small.train))
    tensors, metadata = state.tensors(), state.metadata()
    state.restore(tensors, metadata)
    for data in ({}, metadata["data"] | {"tokenizer": "another"}, metadata["data"] | {"number of training tokens": 7}):
        with pytest.raises(UserError, match="is not what this run started with"):
            state.restore(tensors, metadata | {"data": data})
    del metadata["data"]
    with pytest.raises(UserError, match="the checkpoint has no corpus fingerprint"):
        state.restore(tensors, metadata)


def test_a_run_that_diverges_ends_with_what_to_do(small: Run, tmp_path: Path) -> None:
    """A learning rate that overflows fp32 at once: from the second step on there is nothing finite to learn from."""
    settings = {"optim.adam_lr": 1e38, "optim.muon_lr": 1e38, "train.checkpoint_every": 1, "train.skip_limit": 2}
    with pytest.raises(UserError, match=r"step \d+: the loss is .*lower optim.muon_lr"):
        train(with_settings(small, settings), tmp_path / "run")
    assert not (tmp_path / "run" / "artifact.jepa").exists()
    done = records(tmp_path / "run")
    assert all(math.isfinite(record["loss"]) for record in done)
    assert checkpoints(tmp_path / "run" / "checkpoints")[-1].name == f"step-{len(done):09d}"


@pytest.mark.parametrize("hurt", ["no loader", "odd section", "wrong type", "no rng", "foreign optimizer", "not JSON"])
def test_a_checkpoint_of_the_right_checksum_and_wrong_content_is_refused(
    begun: Path, tmp_path: Path, hurt: str
) -> None:
    """Whoever can write the tensors can write their checksum too."""
    out = tmp_path / "run"
    shutil.copytree(begun, out)
    newest = checkpoints(out / "checkpoints")[-1]
    tensors, state = load_checkpoint(newest)
    if hurt == "no loader":
        del state["loader"]
    elif hurt == "odd section":
        tensors["other/x"] = torch.zeros(1)
    elif hurt == "wrong type":
        state["counters"]["speed"] = 1
    elif hurt == "no rng":
        del tensors["rng/cpu"]
    elif hurt == "foreign optimizer":
        tensors["optim/momentum/model.token_embed.master"] = torch.zeros(256, 16)
    save_checkpoint(newest.parent, 2, tensors, state, keep=1)
    if hurt == "not JSON":
        (newest / "state.json").write_text("[" * 100_000)
    with pytest.raises(UserError, match=r"does not fit|not a complete checkpoint"):
        resume(out)


def test_a_config_that_is_empty_is_refused_in_one_line(small: Run, tmp_path: Path) -> None:
    """A run is there from the moment that its config is whole; a leftover of writing it is not one."""
    out = tmp_path / "run"
    out.mkdir()
    (out / ".config.toml").write_text("[data]\nseq")
    train(with_settings(small, {"train.steps": 1}), out)
    (out / "config.toml").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"config.toml: not TOML"):
        resume(out)


def test_no_checkpoint_of_ours_is_a_pickle(begun: Path) -> None:
    files = [path for path in begun.rglob("*") if path.is_file()]
    assert files
    readers: dict[str, Callable[[Path], Any]] = {
        "artifact.jepa": load_artifact,
        "config.toml": lambda path: tomllib.loads(path.read_text()),
        "metrics.jsonl": lambda path: [json.loads(line) for line in path.read_text().splitlines()],
        "summary.json": lambda path: json.loads(path.read_text()),
        "state.json": lambda path: json.loads(path.read_text()),
        "tensors.safetensors": load_file,
    }
    for path in files:
        assert readers[path.name](path)


def test_every_setting_survives_the_config_file(small: Run, tmp_path: Path) -> None:
    odd = with_settings(small, {"eval.prompts": ['a "b"', "c\\d"], "optim.adam_eps": 1e-9, "data.column": "té xt"})
    (tmp_path / "odd.toml").write_text(dump_toml(odd), encoding="utf-8")
    assert load_preset(str(tmp_path / "odd.toml")) == odd
