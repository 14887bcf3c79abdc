"""The dial: choose the settings in `train.dial` from the budget, the text, the device and the byte limit.

Every rule names the lab note in docs/results/ that it follows. docs/best.md says where the rules are untested.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from decimal import ROUND_DOWN, Context
from typing import Any

from jepamba.artifact.inspect import LIMIT_BYTES
from jepamba.config import BUDGETS, ConfigError, Run, build, flatten, merge, to_dict
from jepamba.data import Corpus, is_shards
from jepamba.distributed import SINGLE_PROCESS, World
from jepamba.gpu_turn import gpu_turn
from jepamba.model_size import model_size
from jepamba.train.device import choose_device
from jepamba.train.speed import measure_speed

CODE_RESERVE = 150_000
"""Bytes of the challenge's limit that the dial leaves to code: the compressed script that trains and scores."""
BYTES_PER_PARAMETER = 0.418
"""Bytes of a parameter in a large artifact with 4-bit matrices (levers-30s: 15.43 MB for 36.9 M parameters)."""
USEFUL_EPOCHS = 4
"""Epochs that count as budget for the size of the model (levers-30s: four epochs in 120 s need no smaller model)."""
MIN_LONGEST, LONGEST = 4, 40
"""Epochs after which a budget in seconds ends: so many at least, and so many for each token of text by parameter
(weight-decay: 8 are worse than 4 at 0.11 tokens a parameter; 8 better than 4 at 0.58, 10 than 7 at 0.83)."""
GPU_TOKENS, CPU_TOKENS = 32_768, 2_048
"""Tokens per step on one device (levers-16s, levers-30s; levers-cpu)."""
GPU_VOCAB, CPU_VOCAB, SHORT_CPU_VOCAB = 16_384, 8_192, 4_096
"""Pieces of a trained tokenizer (best-540s; cpu-avx2, levers-cpu)."""
SHORT_CPU_TOKENS, SHORT_CPU_SECONDS = 4e6, 600.0
"""Budgets on a CPU up to which fewer pieces are better (cpu-avx2: by 0.016 and 0.006 at 2.7 M and 4.1 M tokens)."""
MAX_TOKENS_PER_MICRO = 65_536
"""The largest micro-batch that was trained (submission-bpe-400)."""
DECAY = 1.5
"""Muon's learning rate × weight decay × steps for one epoch or less (weight-decay)."""
DECAY_EXPONENT = 1.2
"""Power of the epochs with which that product rises (weight-decay)."""
MAX_DECAY = 0.05
"""Largest learning rate × weight decay: slightly above the largest that was tried (weight-decay)."""
ADAM_DECAY = 0.4
"""AdamW's learning rate × weight decay × steps by epoch, on a CPU (weight-decay: at 3.6 and 7.6 epochs)."""
MIN_ADAM_DECAY = 0.05
"""AdamW's smallest weight decay, that of all runs before the rule."""
MIN_DECAY = 0.04
"""Muon's smallest weight decay (weight-decay: in 7,880 steps of `cpu` less is worse). Training that starts from trained
weights has it too, since more would shrink them (not measured)."""
LONG_RUN = 10_000
"""Steps from which on a lower learning rate is better (best-540s: so at 20,800 steps, not at 3,700)."""


@dataclass(frozen=True)
class Size:
    """A size of the model, and the budget from which on the dial takes it."""

    cpu_tokens: float
    """Target tokens of the budget, when trained at this size on a CPU."""
    gpu_tokens: float
    """The same on a GPU, on which a small model is hardly faster than a large one."""
    d_model: int
    n_layer: int
    embed_dim: int
    mlp_mult: float
    mlp_every: int
    headdim: int
    d_state: int
    chunk_size: int
    seq_len: int


SIZES = (
    # levers-cpu: best after 1.7 M tokens on a CPU. GPUs are not measured below 640 × 6.
    Size(0, 0, 96, 4, 96, 2.0, 1, 32, 32, 32, 256),
    # levers-cpu: at a third of the budget of `cpu` larger models are worse; 128 × 4 is not worse than this one.
    Size(4e6, 2e6, 128, 6, 128, 2.0, 1, 32, 32, 32, 256),
    # Between the measured sizes, not measured. On a CPU the limits from here on are extrapolated.
    Size(2e7, 6e6, 256, 8, 192, 2.5, 1, 64, 64, 64, 512),
    Size(6e7, 1e7, 384, 8, 256, 2.5, 1, 64, 64, 64, 512),
    # levers-bits: better than 8 layers at 30 s (53 M tokens), as good at 120 s; levers-30s: d_model 512 × 8 is worse.
    Size(3e8, 2e7, 640, 6, 336, 2.5, 1, 64, 64, 64, 1024),
    # levers-bits: as good as 6 layers at 120 s (176 M tokens). levers-state: d_state 128 is 0.012 better there. The
    # limit lies between 53 M tokens, where 6 layers are better, and 138 M (best-540s, 90 s), where they no longer are.
    Size(1e9, 1.1e8, 640, 8, 336, 2.5, 1, 64, 128, 64, 1024),
)
"""The sizes, smallest first. levers-30s: 10 layers are no better than 8 up to 120 s. headdim, window length:
levers-16s. chunk_size 32 is fastest for d_state 32."""


@dataclass(frozen=True)
class Circumstances:
    """What the rules know besides the settings."""

    text_tokens: int
    """Tokens of the training text."""
    on_gpu: bool
    world_size: int = 1
    parameter_tokens_per_second: float | None = None
    """Measured tokens per second × parameters, nearly the same for all sizes (levers-30s: 6 to 10 layers)."""


@dataclass(frozen=True)
class Choice:
    """A chosen setting and the reason."""

    name: str
    value: Any
    reason: str

    def __str__(self) -> str:
        return f"{self.name} = {self.value}: {self.reason}"


def choose(run: Run, known: Circumstances) -> list[Choice]:
    """Choose every setting in `run.train.dial` but `data.vocab`. The choices follow from the other settings of `run`.

    With a budget in seconds and no measured speed, the size is that of a candidate for the measurement.
    """
    given, choices = flatten(to_dict(run)), list[Choice]()

    def pick(name: str, value: Any, reason: str) -> Any:
        if name not in run.train.dial:
            return given[name]
        choices.append(Choice(name, value, reason))
        return value

    # 65,536 are worse on one GPU at 16 s to 120 s, 16,384 at 16 s (levers-16s, levers-30s). A step has a fixed part of
    # 4 to 9 ms, and takes 0.5 ms per 1,024 tokens and GPU. So with 4 or 8 GPUs the fixed part costs more than a larger
    # batch does (derived). A CPU has no such fixed part: 1,024 are worse than 2,048 and 4,096 as good (levers-cpu).
    best = GPU_TOKENS if known.on_gpu else CPU_TOKENS
    batch = best * max(1, known.world_size // 2) if known.on_gpu else best
    if "train.tokens_per_step" not in run.train.dial:
        batch = run.train.tokens_per_step
    limit = run.quant.budget_bytes or LIMIT_BYTES - CODE_RESERVE
    size, parameters, reason = _choose_size(run, known, batch, limit)
    for name, value in asdict(size).items():
        if name not in ("cpu_tokens", "gpu_tokens", "seq_len"):
            pick(f"model.{name}", value, reason if name in ("d_model", "n_layer") else "goes with this size")
    # levers-cpu: the cap takes a tenth of the time on a CPU and is no better. Not measured on a GPU.
    cap_reason = "as published" if known.on_gpu else "it takes a tenth of the time and lowers no score"
    pick("model.softcap", "poly" if known.on_gpu else "off", cap_reason)
    seq_len = pick("data.seq_len", size.seq_len, "goes with this size; no other length was better")

    unit = seq_len * known.world_size
    if "train.tokens_per_step" not in run.train.dial and batch % unit:
        of = f"data.seq_len = {seq_len}" + (f" × {known.world_size} processes" if known.world_size > 1 else "")
        raise ConfigError(f"train.tokens_per_step = {batch}: must be a multiple of {of}")
    if "train.tokens_per_micro" not in run.train.dial:
        unit = math.lcm(unit, run.train.tokens_per_micro)
    batch_reason = f"{best:,} were best on one {'GPU' if known.on_gpu else 'CPU'}"
    if known.world_size > 1:
        batch_reason += f"; derived, not measured, for {known.world_size} processes"
    batch = pick("train.tokens_per_step", -(-batch // unit) * unit, batch_reason)
    windows = max(1, batch // seq_len)
    most = max(1, min(-(-windows // known.world_size), MAX_TOKENS_PER_MICRO // seq_len))
    rows = next(count for count in range(most, 0, -1) if windows % count == 0)
    pick("train.tokens_per_micro", rows * seq_len, "the largest micro-batch that divides the step")

    small, tokens = batch <= 2 * CPU_TOKENS, _budget_tokens(run, known, batch, parameters)
    longest = _longest_budget(known.text_tokens, parameters)
    if run.train.seconds > 0 and tokens >= longest > 0:
        epochs_reason = "epochs of the text; more of little text raised the BPB of unseen text"
        pick("train.tokens", longest, f"{longest / known.text_tokens:.2g} {epochs_reason}")
    else:
        pick("train.tokens", run.train.tokens, "no limit beside the given budget")
    long = known.on_gpu and not small and tokens >= LONG_RUN * batch
    # levers-16s: 0.03 is 0.018 better than 0.02; levers-30s: 0.04 is worse. tuning-cpu-preset: 0.02 on a CPU.
    # best-540s: 0.02, with AdamW's 0.01 and a warmdown of 1, is 0.012 better at 540 s.
    lr_reason = f"best of those tried for batches of {CPU_TOKENS if small else GPU_TOKENS:,} tokens"
    lr_reason = f"better at 20,800 steps, no better at 3,700; taken from {LONG_RUN:,} on" if long else lr_reason
    muon_lr = pick("optim.muon_lr", 0.02 if small or long else 0.03, lr_reason)
    # levers-cpu, tuning-cpu-preset: 0.01 is better than 0.02. levers-30s: 0.015 is as good as 0.02 on a GPU.
    adam_lr = pick("optim.adam_lr", 0.01 if small or long else 0.015, lr_reason)
    # levers-30s, levers-cpu: 0.8 is no better. levers-30s: a floor of the learning rate hurts.
    pick("optim.warmdown", 1.0 if long else 0.6, lr_reason if long else "0.8 is no better")
    for choice in _weight_decays(run, known, tokens / max(known.text_tokens, 1), tokens / batch, muon_lr, adam_lr):
        pick(choice.name, choice.value, choice.reason)
    # levers-16s: 0.015 better than from the first step; levers-30s: the last 15 % are no better. levers-cpu: equal.
    pick("quant.qat_fraction", 0.3, "rounding over the last 30 % is better than from the first step")
    # levers-bits: bits chosen for the whole file are 0.014 better than 4 bits everywhere at 120 s.
    bits = pick("quant.bits", 4, "as published; more where the file has room")
    full = (known.on_gpu or parameters * BYTES_PER_PARAMETER > limit / 2) and "quant.bits" in run.train.dial
    budget_reason = (
        f"more bits for a weight where the file has room: {LIMIT_BYTES:,} less {CODE_RESERVE:,} bytes for code"
        if full
        else f"no bits beyond {bits}: the file is small"
    )
    budget = pick("quant.budget_bytes", limit if full else 0, budget_reason)
    # quantizers: FP8 is as good on a CPU. It takes 6.9 bits a value by entropy, and the allocation cannot change them.
    embedding_reason = (
        "integers, so that their bits are chosen with the others" if budget else "8 bits, no choice of bits"
    )
    pick("quant.embedding", "int8" if budget else "fp8", embedding_reason)
    return choices


def _weight_decays(
    run: Run, known: Circumstances, epochs: float, steps: float, muon_lr: float, adam_lr: float
) -> list[Choice]:
    """The weight decays of both optimizers for so many `epochs` of the text in `steps` (weight-decay)."""
    counted = max(epochs, 1.0)
    rule = f"{DECAY} · epochs^{DECAY_EXPONENT} / (learning rate · steps), for {counted:.2g} epochs"
    muon, reason = _bounded_decay(DECAY * counted**DECAY_EXPONENT, muon_lr, steps, MIN_DECAY, rule)
    if run.train.init_from:
        muon, reason = MIN_DECAY, "small, as it shrinks the weights that training starts from"
    adam, adam_reason = MIN_ADAM_DECAY, "as published; no other value was measured alone on a GPU"
    if run.train.init_from:
        adam_reason = "as published, for weights that training starts from"
    elif not known.on_gpu:
        rule = f"{ADAM_DECAY} · epochs / (learning rate · steps)"
        adam, adam_reason = _bounded_decay(ADAM_DECAY * epochs, adam_lr, steps, MIN_ADAM_DECAY, rule)
    return [Choice("optim.muon_weight_decay", muon, reason), Choice("optim.adam_weight_decay", adam, adam_reason)]


def _bounded_decay(product: float, lr: float, steps: float, least: float, rule: str) -> tuple[float, str]:
    """The weight decay whose product with `lr` and `steps` is `product`, at least `least`, and the reason for it.

    It has two significant digits, and `lr` × decay is at most `MAX_DECAY`. Without a budget or a learning rate it is 0,
    without effect.
    """
    if steps <= 0 or lr <= 0:
        return 0.0, rule
    decay = float(f"{product / steps / lr:.2g}")
    if decay < least:
        return least, f"{rule} gives less than {least}"
    if decay * lr <= MAX_DECAY:
        return decay, rule
    most = float(Context(prec=2, rounding=ROUND_DOWN).create_decimal_from_float(MAX_DECAY / lr))
    return most, f"learning rate × decay is at most {MAX_DECAY}"


def _choose_size(run: Run, known: Circumstances, batch: int, limit: int) -> tuple[Size, int, str]:
    """The largest size whose tokens the budget reaches and that fits `limit` bytes, or else the smallest.

    Returns: the size, its parameters, and the reason.
    """
    unknown_speed = run.train.seconds > 0 and known.parameter_tokens_per_second is None
    for size in reversed(SIZES):
        parameters = _parameters(run, size)
        tokens = _budget_tokens(run, known, batch, parameters)
        useful = min(tokens, USEFUL_EPOCHS * known.text_tokens)
        fits = parameters * BYTES_PER_PARAMETER * min(run.quant.bits, 8) / 4 <= limit
        enough = useful >= (size.gpu_tokens if known.on_gpu else size.cpu_tokens)
        if unknown_speed:
            # The speed of the largest that fits holds for its neighbours; a CPU's is nearly that of any size.
            enough = known.on_gpu
        if (enough and fits) or size is SIZES[0]:
            break
    reason = (
        f"{parameters / 1e6:.1f} M parameters for about {float(f'{tokens:.3g}') / 1e6:,g} M target tokens "
        f"({tokens / max(known.text_tokens, 1):.2g} epochs) within {limit:,} bytes"
    )
    return size, parameters, reason


def _parameters(run: Run, size: Size) -> int:
    """The parameters of the model with the dialled settings of `size`."""
    settings = {f"model.{name}": value for name, value in asdict(size).items()}
    dialled = {name: value for name, value in settings.items() if name in run.train.dial}
    return model_size(build(merge(flatten(to_dict(run)), dialled))).counts["kept"]


def _budget_tokens(run: Run, known: Circumstances, batch: int, parameters: int) -> float:
    """The target tokens of the budget for a model of `parameters`: those of the budget that is reached first."""
    budget, speed = run.train, known.parameter_tokens_per_second
    tokens = _counted_tokens(run, batch)
    if budget.seconds > 0 and speed is not None:
        tokens.append(budget.seconds * speed / parameters)
        tokens += [float(_longest_budget(known.text_tokens, parameters))] if "train.tokens" in budget.dial else []
    return min(tokens, default=0.0)


def _longest_budget(text_tokens: int, parameters: int) -> int:
    """The target tokens after which a budget in seconds ends: more of the same text raises the BPB of other text."""
    return round(text_tokens * max(MIN_LONGEST, LONGEST * text_tokens / parameters))


def _counted_tokens(run: Run, batch: int) -> list[float]:
    """The target tokens of the budgets in steps and in tokens, of those that are given."""
    return [float(count) for count in (run.train.steps * batch, run.train.tokens) if count > 0]


def resolve_vocabulary(
    run: Run, world: World = SINGLE_PROCESS, say: Callable[[str], None] = lambda line: None
) -> tuple[Run, list[Choice]]:
    """Choose `data.vocab` if it is in `run.train.dial`, before the text is read. All ranks must call it.

    Returns: the run without that name in its dial, and the choice.
    """
    if "data.vocab" not in run.train.dial:
        return run, []
    if run.data.tokenizer != "bpe" or is_shards(run.data.train):
        unused = [Choice("data.vocab", run.data.vocab, "not used: the tokenizer is given")]
        return apply(run, unused), unused
    on_gpu = world.on_rank_zero(lambda: choose_device(run.train).device.type == "cuda")
    if on_gpu:
        reason = "16,384 pieces were 0.009 better than 8,192 in 90 s (one pair, within noise)"
        choice = Choice("data.vocab", GPU_VOCAB, reason)
    elif _is_short(run):
        choice = Choice("data.vocab", SHORT_CPU_VOCAB, "a short run reads more text with a small head")
    else:
        choice = Choice("data.vocab", CPU_VOCAB, "4,096 pieces are better in shorter runs only")
    say(str(choice))
    return apply(run, [choice]), [choice]


def _is_short(run: Run) -> bool:
    """Whether the budget on a CPU is one for fewer pieces. The speed is not known yet."""
    budget = run.train
    batch = CPU_TOKENS if "train.tokens_per_step" in budget.dial else budget.tokens_per_step
    tokens = min(_counted_tokens(run, batch), default=math.inf)
    return tokens <= SHORT_CPU_TOKENS or 0 < budget.seconds <= SHORT_CPU_SECONDS


def resolve_dial(
    run: Run, text: Corpus, world: World = SINGLE_PROCESS, say: Callable[[str], None] = lambda line: None
) -> tuple[Run, list[Choice]]:
    """Replace the settings in `run.train.dial` by the dial's choices. All ranks must call it.

    Rank 0 chooses for all. The clock is read only if the budget is in seconds.

    Arguments:
        run: the settings, with the vocabulary set.
        text: the text of the run.
        say: receives one line for each choice.

    Returns:
        The run, whose `train.dial` is empty, and the choices.
    """
    if not run.train.dial:
        return run, []
    device = choose_device(run.train).device
    known = Circumstances(len(text.train), device.type == "cuda", world.world_size)
    if run.train.seconds > 0:
        candidate = apply(run, world.on_rank_zero(lambda: choose(run, known)))
        with gpu_turn():  # another run's training would halve the speed
            speed = measure_speed(candidate, text, world)
        known = replace(known, parameter_tokens_per_second=speed)
    choices = world.on_rank_zero(lambda: choose(run, known))
    for choice in choices:
        say(str(choice))
    return apply(run, choices), choices


def apply(run: Run, choices: list[Choice]) -> Run:
    """`run` with the `choices`. A chosen limit in tokens stands beside the given budget."""
    chosen = {choice.name: choice.value for choice in choices}
    if "train.tokens" in chosen:
        chosen = {f"train.{name}": getattr(run.train, name) for name in BUDGETS} | chosen
    return build(merge(flatten(to_dict(run)), chosen))
