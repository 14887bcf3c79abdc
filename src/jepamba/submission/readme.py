"""README.md of a submission: the scores, how to reproduce them, and the model."""

from __future__ import annotations

from collections.abc import Mapping
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

## To score it

    pip install {packages}
    python score.py --data {data}

`score.py` is all the code that scoring needs, and its {bytes_code:,} bytes are counted. It uses a GPU if there is one,
and nothing from the network. `--data` takes `*_val_*.bin` shards, a folder of them, or text whose documents are
separated by NUL bytes, which the artifact's own tokenizer then encodes. It prints the figure and ends with exit code 0
if it is the one in `submission.json`, within 0.0001. The bytes that the targets were counted as are compared with the
length of the text that they decode to before any figure is printed.{packed}

## The model

A Mamba-2 language model of {parameters:,} parameters: {n_layer} blocks of width {d_model}, state {d_state} a channel,
an MLP {mlp_every}, {skips}a vocabulary of {vocab_size:,}. Large matrices are stored as {matrix_format}.
{rounding}

## How it was trained

With jepamba {jepamba} (PyTorch {torch}; {device}): {steps:,} steps, {train_tokens:,} tokens, {time}, seed {seed}.
Objective: {objective}.

| file | what |
|---|---|
| `submission.json` | the figures for machines |
| `artifact.jepa` | weights, tokenizer and settings; loading it runs no code |
| `score.py` | the program that scores it |
| `config.toml` | every setting of the training run: `jepamba train config.toml` repeats it, given the data |
| `train.log` | the training's log |
"""


def readme(
    claims: Mapping[str, Any],
    run: Run,
    summary: Mapping[str, Any],
    packages: list[str],
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
        packages=" ".join(["torch", "numpy", "sentencepiece", *packages]),
        data=validation or "FOLDER_OF_VALIDATION_SHARDS",
        packed=" Its sections are kept compressed; a comment in it says how to read them." if packed else "",
        **{key: getattr(model, key) for key in ("n_layer", "d_model", "d_state", "vocab_size")},
        mlp_every="in every block" if model.mlp_every == 1 else f"in one block of {model.mlp_every}",
        skips="U-Net skips, " if model.unet else "",
        matrix_format=_matrix_format(quant),
        rounding=_rounding(quant),
        objective=latent if jepa.active else "next-token cross-entropy alone",
    )
    return page + (f"| `{validation}` | the validation text's tokens; not counted |\n" if validation else "")


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
    rows = []
    for key in ("bpb_plain", "bpb_calibrated", "bpb_sliding"):
        score = summary.get(key)
        if isinstance(score, dict):
            rows.append(
                f"| {score['mode']}, temperature {score['temperature']:.2f} | {score['bpb']:.4f} | "
                f"{score['nats_per_token']:.4f} | {score['tokens']:,} | {score['bytes']:,} |"
            )
    return "\n".join(rows)
