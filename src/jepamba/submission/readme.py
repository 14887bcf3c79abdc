"""README.md of a submission: the scores, how to reproduce them, and the model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jepamba.config import Quant, Run
from jepamba.progress import duration

_PAGE = """\
# {title}
{byline}{blurb}
**{val_bpb:.4f} bits per byte** of the validation text, by decoded bytes ({mode} windows of {seq_len} tokens,
temperature {temperature:.2f}), scored on the artifact as it was read back from disk. **{bytes_total:,} bytes**:
{bytes_model:,} of model, {bytes_code:,} of code.

| score of the artifact | BPB | nats a token | targets | bytes of decoded text |
|---|---:|---:|---:|---:|
{scores}

## To train and to score it

    pip install -r requirements.txt
    torchrun --standalone --nproc_per_node=8 train_gpt.py --data FOLDER_OF_SHARDS
    torchrun --standalone --nproc_per_node=8 train_gpt.py --score --data {data}

`train_gpt.py` is all the code, and its {bytes_code:,} bytes are counted. It runs on GPUs, one process each, or without
`torchrun` in one process, also on a CPU, and it uses nothing from the network. The first command trains with the
settings of this run, which it contains, writes `final_model.jepa` and `final_model.log`, and scores that artifact. The
second one scores `artifact.jepa`, and ends with exit code 0 if the score is the one in `submission.json`, within
0.0001. Both print a line `final_artifact_…_exact val_loss:… val_bpb:…`, and last the figures as JSON.

`--data` (or `DATA_PATH`) is a folder of `*_train_*.bin` and `*_val_*.bin` shards of the tokenizer in `artifact.jepa`,
or in `--tokenizer` (`TOKENIZER_PATH`). `--score` takes text too, with NUL bytes between documents. `--seed` (`SEED`)
sets another seed. The bytes that the targets were counted as are compared with the length of the text that they decode
to before any figure is printed.{packed}

## What this folder does not show

{limits}

## The model

A Mamba-2 language model of {parameters:,} parameters: {n_layer} blocks of width {d_model}, state {d_state} a channel,
an MLP {mlp_every}, {skips}a vocabulary of {vocab_size:,}. Large matrices are stored as {matrix_format}.
{rounding}

## How it was trained

With jepamba {jepamba} (PyTorch {torch}; {hardware}; {device}): {steps:,} steps, {train_tokens:,} tokens, {time},
seed {seed}. Objective: {objective}.

| file | what |
|---|---|
| `submission.json` | the figures for machines |
| `artifact.jepa` | weights, tokenizer and settings; loading it runs no code |
| `train_gpt.py` | the program that trains and scores |
| `requirements.txt` | the packages that it imports |
| `config.toml` | every setting of the training run: `jepamba train config.toml` repeats it, given the data |
| `train.log` | the log of the run |
"""


def readme(
    claims: Mapping[str, Any],
    run: Run,
    summary: Mapping[str, Any],
    packed: bool,
    validation: str,
) -> str:
    """Return the page in Markdown.

    Arguments:
        claims: The content of submission.json.
        validation: Name of the validation shard in the folder, or empty.
    """
    model, quant, jepa = run.model, run.quant, run.jepa
    latent = f"cross-entropy, latent prediction (weight {jepa.weight}) and SIGReg (λ {jepa.sigreg_weight})"
    if jepa.vicreg_weight > 0:
        latent += f" and VICReg (weight {jepa.vicreg_weight})"
    page = _PAGE.format(
        **{**claims, "blurb": f"\n{claims['blurb']}\n" if claims["blurb"] else ""},
        title=claims["name"] or "A submission",
        byline=f"\nby {claims['author']}\n" if claims["author"] else "",
        **{"scores": _scores(summary), "seq_len": run.data.seq_len, "time": duration(claims["seconds"])},
        data=validation or "FOLDER_OF_VALIDATION_SHARDS",
        limits="\n".join(f"- {limit}" for limit in _limits(claims, run)),
        packed=" The sections of the script are compressed; a comment in it says how to read them." if packed else "",
        **{key: getattr(model, key) for key in ("n_layer", "d_model", "d_state", "vocab_size")},
        mlp_every="in every block" if model.mlp_every == 1 else f"in one block of {model.mlp_every}",
        skips="U-Net skips, " if model.unet else "",
        matrix_format=_matrix_format(quant),
        rounding=_rounding(quant),
        objective=latent if jepa.active else "next-token cross-entropy alone",
    )
    return page + (f"| `{validation}` | the validation text's tokens; not counted |\n" if validation else "")


def _limits(claims: Mapping[str, Any], run: Run) -> list[str]:
    """What the challenge asks for and this run does not show, one sentence or two each."""
    limits = []
    if claims["track"] != "10min_16mb":
        limits.append(
            f"It was trained on {claims['hardware']} in {duration(claims['seconds'])}. Ten minutes on 8 × H100 are not "
            "shown, so it is a non-record submission."
        )
    if run.train.init_from:
        limits.append(
            "The run started from weights that were trained before. `train_gpt.py` starts from random ones, so it does "
            "not repeat this run."
        )
    text = Path(run.data.val or run.data.train).name
    return [
        *limits,
        f"The score is of the validation text that the run read ({text}, {claims['val_bytes']:,} bytes). It is a score "
        "of the challenge only if these are its validation shards.",
        "The tokenizer is part of `artifact.jepa`, and other shards do not fit the model. If it is not one of the "
        "challenge's, the reviewers want to see how its bytes are counted.",
        f"One seed ({run.train.seed}). A record needs several, with p < 0.01.",
        "`train.log` is that of `jepamba train`, of whose source `train_gpt.py` is made. Its time leaves out "
        "validations, pauses and the choice of bits. The script counts all but packing and the final scores.",
        "On a CPU the script has no C++ kernels, so it is slower than the run, and its sums may round differently.",
    ]


def _matrix_format(quant: Quant) -> str:
    if quant.exact:
        return "32-bit floating point"
    mixed = quant.budget_bytes or quant.bit_allocation
    return "integers of 2 to 8 bits, chosen for each tensor" if mixed else f"{quant.bits}-bit integers"


def _rounding(quant: Quant) -> str:
    """When the weights were rounded, as one sentence."""
    if quant.exact:
        return "No weight is rounded."
    if quant.qat_fraction == 0:
        return "They were rounded after training."
    share = "the whole" if quant.qat_fraction == 1 else f"the last {quant.qat_fraction:.0%}"
    return f"The forward pass used the rounded weights over {share} of training."


def _scores(summary: Mapping[str, Any]) -> str:
    rows = list[str]()
    for key in ("bpb_plain", "bpb_calibrated", "bpb_sliding"):
        score = summary.get(key)
        if isinstance(score, dict):
            rows.append(
                f"| {score['mode']}, temperature {score['temperature']:.2f} | {score['bpb']:.4f} | "
                f"{score['nats_per_token']:.4f} | {score['tokens']:,} | {score['bytes']:,} |"
            )
    return "\n".join(dict.fromkeys(rows))
