"""The program of a submission's `train_gpt.py`: train with the settings of the run, pack and score; or only score.

`bundle.py` makes one file of it, so it may import only modules that need PyTorch, NumPy, SentencePiece and codecs.
Its loop takes the steps that `jepamba train` takes. It has no checkpoints, validations and dashboards, and every second
counts as training.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from jepamba.artifact.store import open_artifact
from jepamba.config.run import Run
from jepamba.config.settings import build
from jepamba.data.build import Corpus
from jepamba.distributed.collectives import World, process_group
from jepamba.distributed.failures import reported_failures
from jepamba.errors import UserError
from jepamba.progress import silence
from jepamba.submission.scoring import compare, read_tokens, score_artifact_at
from jepamba.text.tokenizers import read_tokenizer
from jepamba.train.bit_allocation import check_budget, choose_same_bits, is_due, pack_within_budget
from jepamba.train.device import choose_device
from jepamba.train.export import pack, score_artifact
from jepamba.train.state import TrainState
from jepamba.train.step import NotFiniteError, Trainer, ghost_warmup

Say = Callable[[str], None]


def main(script: str, stride: int, settings: Mapping[str, Any]) -> int:
    """Run the command line of the file `script`, under torchrun or in one process.

    It prints the lines of the challenge's logs, and in the end one JSON object with the score and the bytes.

    Arguments:
        stride: default of `--sliding`.
        settings: the dotted settings of the run.

    Returns:
        The exit code. 0: success; 1: the score differs from the claim in submission.json; 2: a user error, with one
        line that names it.
    """
    args = _arguments(Path(script).parent, stride, settings)
    silence()
    try:
        with process_group() as world, reported_failures(world.world_size):
            return _score(args, script, world) if args.score else _train(args, script, settings, world)
    except UserError as error:
        print(f"train_gpt.py: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        if dist.is_available() and dist.is_initialized():
            os._exit(2)  # Python's own end would wait for ranks that may be gone
        return 2


def _arguments(folder: Path, stride: int, settings: Mapping[str, Any]) -> argparse.Namespace:
    environment = os.environ
    data = [environment["DATA_PATH"]] if "DATA_PATH" in environment else None
    parser = argparse.ArgumentParser(description="Train the model of this folder, pack it and score it; or score it.")
    parser.add_argument("--score", action="store_true", help="score --artifact and compare with submission.json")
    parser.add_argument(
        "--data", nargs="+", type=Path, required=data is None, default=data and [*map(Path, data)],
        help="folder of *_train_*.bin and *_val_*.bin shards; with --score also shards or text (default: $DATA_PATH)",
    )  # fmt: skip
    parser.add_argument(
        "--tokenizer", type=Path, default=environment.get("TOKENIZER_PATH"),
        help="SentencePiece model of the shards (default: $TOKENIZER_PATH, else the tokenizer in --artifact)",
    )  # fmt: skip
    parser.add_argument("--artifact", type=Path, default=folder / "artifact.jepa", help="default: beside this script")
    parser.add_argument("--out", type=Path, default=Path("final_model.jepa"), help="artifact to write (%(default)s)")
    seed = environment.get("SEED", settings["train.seed"])
    parser.add_argument("--seed", type=int, default=seed, help="default: $SEED, else %(default)s")
    parser.add_argument("--sliding", type=int, default=stride, help=f"stride; 0: plain windows (default: {stride})")
    parser.add_argument("--batch", type=int, default=0, help="tokens of a forward pass (default: by the device)")
    return parser.parse_args()


def _score(args: argparse.Namespace, script: str, world: World) -> int:
    """Score an artifact; the ranks share its windows."""
    score = score_artifact_at(args.artifact, args.data, args.sliding, args.batch, world)
    if not world.is_rank_zero:
        return 0
    size = sizes(args.artifact, script)
    print(*size_lines(size), *score_lines(score), json.dumps({**score, **size}), sep="\n", flush=True)
    return compare(Path(script).parent / "submission.json", score)


def _train(args: argparse.Namespace, script: str, settings: Mapping[str, Any], world: World) -> int:
    run = build({**settings, "train.seed": args.seed})
    tokenizer = read_tokenizer(args.tokenizer) if args.tokenizer else open_artifact(args.artifact).tokenizer
    if tokenizer.vocab_size != run.model.vocab_size:
        raise UserError(f"the tokenizer has {tokenizer.vocab_size:,} pieces, the model {run.model.vocab_size:,}")
    if not all(path.is_dir() for path in args.data):
        raise UserError("training needs --data with a folder of *_train_*.bin and *_val_*.bin shards")
    tokens, val = (read_tokens(args.data, tokenizer, split) for split in ("train", "val"))
    corpus = Corpus(tokens, val, tokenizer, val.decoded_bytes if val.text_bytes is None else val.text_bytes)
    log = args.out.with_suffix(".log")
    if world.is_rank_zero:
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("", encoding="utf-8")

    def say(line: str) -> None:
        if world.is_rank_zero:
            print(line, flush=True)
            with log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    scores = train(run, corpus, args.out, world, say)
    if world.is_rank_zero:
        plain, sliding = scores["bpb_calibrated"], scores["bpb_sliding"]
        whole, size = sliding is not None and sliding["tokens"] == plain["tokens"], sizes(args.out, script)
        say("\n".join([*size_lines(size), *score_lines(plain), *(score_lines(sliding) if whole else [])]))
        print(json.dumps({**(sliding if whole else plain), **size}), flush=True)
    return 0


def train(run: Run, corpus: Corpus, out: Path, world: World, say: Say) -> dict[str, Any]:
    """Train `run` on `corpus`, write the artifact `out`, and score it. All ranks must call it.

    With a budget in steps, the weights equal those of `jepamba train`. Returns the scores as in summary.json. Raises
    `UserError` after more than `train.skip_limit` steps whose loss or gradient is not finite.
    """
    state = TrainState(run, corpus, choose_device(run.train), world)
    trainer, counters, budget = Trainer(state), state.counters, run.train
    say(f"model_params:{sum(p.numel() for p in state.model.parameters())}")
    say(f"world_size:{world.world_size} device:{state.device} precision:{state.device_config.dtype}")
    say(f"train_batch_tokens:{budget.tokens_per_step} train_seq_len:{run.data.seq_len} seed:{budget.seed}")
    say(f"iterations:{budget.steps} max_wallclock_seconds:{budget.seconds:.3f}")
    world.on_rank_zero(lambda: check_budget(state))

    def note_skip(problem: str) -> None:
        say(f"step:{counters.step} {problem}")
        if counters.skipped > budget.skip_limit:
            raise UserError(f"{problem}; {counters.skipped} skipped steps are more than {budget.skip_limit}")

    if run.optim.ghost_steps > 0:
        ghost_warmup(trainer, note_skip)
        counters = state.counters
    clock = time.perf_counter()
    while (fraction := state.budget_fraction()) < 1.0:
        if is_due(state, fraction):
            say(choose_same_bits(state, fraction))
        loss = float("nan")
        try:
            loss = trainer.train_step(fraction)["ce"]
        except NotFiniteError as error:
            note_skip(str(error))
        now = time.perf_counter()
        # The clock of rank 0, so that all ranks end with the same step.
        counters.seconds += world.all_gather_object(now - clock)[0]
        clock = now
        if counters.step <= 10 or counters.step % 100 == 0:
            say(step_line(counters.step, budget.steps, loss, counters.seconds))
    say(step_line(counters.step, budget.steps, loss, counters.seconds))
    if state.device.type == "cuda":
        say(f"peak memory allocated: {torch.cuda.max_memory_allocated() >> 20} MiB")
    trainer.release()
    for message in world.on_rank_zero(lambda: pack_within_budget(state, out)):
        say(message)
    state.model.eval()
    world.on_rank_zero(lambda: pack(state, out))
    return score_artifact(state, out)


def step_line(step: int, steps: int, loss: float, seconds: float) -> str:
    """Return the line of a training step in the challenge's logs. `steps`: the budget in steps; 0: none."""
    milliseconds = 1000 * seconds
    times = f"train_time:{milliseconds:.0f}ms step_avg:{milliseconds / max(step, 1):.2f}ms"
    return f"step:{step}/{steps} train_loss:{loss:.4f} {times}"


def score_lines(score: Mapping[str, Any]) -> list[str]:
    """Return the last lines of the challenge's logs: the score of the artifact, rounded and with all digits."""
    name, stride = "final_artifact_roundtrip", ""
    if score["mode"].startswith("sliding-"):
        name, stride = "final_artifact_sliding_window", f" stride:{score['mode'].removeprefix('sliding-')}"
    loss, bpb = score["nats_per_token"], score.get("bpb_decoded", score["bpb"])
    return [
        f"{name} val_loss:{loss:.4f} val_bpb:{bpb:.4f}{stride} eval_time:{1000 * score['seconds']:.0f}ms",
        f"{name}_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}",
    ]


def sizes(artifact: Path, script: str) -> dict[str, int]:
    """Return the bytes that the challenge counts."""
    model, code = artifact.stat().st_size, Path(script).stat().st_size
    return {"bytes_model": model, "bytes_code": code, "bytes_total": model + code}


def size_lines(size: Mapping[str, Any]) -> list[str]:
    """Return the lines of `sizes` in the challenge's logs."""
    return [
        f"Serialized model: {size['bytes_model']} bytes",
        f"Code size: {size['bytes_code']} bytes",
        f"Total submission size: {size['bytes_total']} bytes",
    ]
