"""The model card: README.md of a model on the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jepamba import __version__
from jepamba.artifact.store import Artifact
from jepamba.progress import duration

_SCORES = ("bpb_calibrated", "bpb_sliding", "bpb_carried")

_LAST = "Training started from trained weights. Text, licence and budget are those of its last part only.\n\n"

_PAGE = """\
---
{metadata}
---

# {title}

A language model {attention}, trained and packed by jepamba {version}: {parameters:,} parameters in one file of
{size:,} bytes, with its tokenizer ({tokenizer}). Loading it executes nothing.

## Figures

{figures}

## Training

{last}- Text: {text}
- Licence of the text: {license}
{budget}{initial}
## Use

The model needs the Python package jepamba: in a copy of its repository, `pip install .`

```python
import jepamba

lm = jepamba.load("hf://{name}")
print(lm.score("A text.").bpb)
print(lm.generate("The", max_new_tokens=60))
```

```
jepamba generate hf://{name} --prompt "The"
jepamba eval hf://{name} --data FILE
jepamba compress FILE --model hf://{name} -o FILE.jpc
jepamba pull {name}
```
{heads}{samples}"""


def model_card(
    name: str,
    artifact: Artifact,
    size: int,
    *,
    license: str,
    text: str,
    summary: Mapping[str, Any] | None,
    heads: bool,
    changed: Collection[str] = (),
) -> str:
    """Return the page, in Markdown with metadata in YAML.

    Arguments:
        name: "owner/name".
        size: Bytes of the artifact's file.
        license: Of the training text, as the hub abbreviates it.
        text: What the training text is.
        summary: The summary.json of the run. None: a page without figures, budget and samples.
        heads: Whether the JEPA heads are beside the artifact.
        changed: The settings of the run that are not those of its preset.
    """
    from huggingface_hub import ModelCardData

    tags = ["jepamba", "mamba2", "state-space-model", "compression"]
    data = ModelCardData(license=license, library_name="jepamba", pipeline_tag="text-generation", tags=tags)
    every = artifact.run.model.attention_every
    attention = f"with Mamba-2 layers, and attention in one of {every}" if every else "without attention (Mamba-2)"
    initial = _initial(artifact.header["extra"].get("initial"))
    return _PAGE.format(
        metadata=data.to_yaml(),
        title=name.partition("/")[2],
        attention=attention,
        version=__version__,
        parameters=sum(parameter.numel() for parameter in artifact.model.parameters()),
        size=size,
        tokenizer=f"{artifact.tokenizer.vocab_size:,} {artifact.tokenizer.kind} tokens",
        figures="No scores came with this artifact." if summary is None else _figures(summary),
        text=text,
        license=license,
        budget="" if summary is None else _budget(summary, changed),
        last=_LAST if initial else "",
        initial=initial,
        name=name,
        heads='\n`heads.safetensors` has the JEPA heads, for `lm.latents(text, "z")`.\n' if heads else "",
        samples="" if summary is None else _samples(summary),
    )


def _figures(summary: Mapping[str, Any]) -> str:
    rows = [
        f"| {score['mode']} | {score['bpb']:.4f} | {score['tokens']:,} | {score['bytes']:,} |"
        for score in (summary.get(key) for key in _SCORES)
        if isinstance(score, dict)
    ]
    return "\n".join(
        [
            "Bits per byte (BPB) of held-out text; lower is better. The file was scored as read back from disk.",
            "",
            "| windows | BPB | tokens | bytes of text |",
            "|---|---:|---:|---:|",
            *rows,
        ]
    )


def _initial(models: object) -> str:
    """The trained models before this one, from the notes of its artifact, in which any JSON may stand."""
    lines = []
    for model in models if isinstance(models, list) else []:
        found = model if isinstance(model, dict) else {}
        name, sha256, text = (" ".join(str(found.get(key, "")).split())[:300] for key in ("name", "sha256", "text"))
        what = f"{name or 'an artifact without a public name'} (sha256 {sha256[:16] or 'unknown'})"
        lines.append(f"- Initial weights: {what}; its text and licence: {text or 'not stored in it'}\n")
    return "".join(lines)


def _budget(summary: Mapping[str, Any], changed: Collection[str]) -> str:
    preset, environment = summary.get("preset"), summary["environment"]
    settings = f", with other values of {', '.join(f'`{name}`' for name in changed)}" if changed else ""
    return (
        f"- Budget: {summary['steps']:,} steps, {summary['tokens']:,} tokens, {duration(summary['seconds'])}\n"
        f"- Device: {environment['device'].removeprefix('computing on ')}; PyTorch {environment['torch']}\n"
        + (f"- Preset: `{preset}`{settings}\n" if preset and "/" not in preset else "")
    )


def _samples(summary: Mapping[str, Any]) -> str:
    """The continuations of the prompts, indented as code, so that no sign in them is taken for Markdown."""
    texts = [f"{sample['prompt']}{sample['text']}" for sample in summary.get("samples", [])]
    blocks = ["\n".join(f"    {line}".rstrip() for line in text.splitlines()) for text in texts]
    return "".join(f"\n{block}\n" for block in ["## Samples", *blocks]) if texts else ""
