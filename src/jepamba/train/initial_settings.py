"""The settings of a run from its layers, with those that `train.init_from` implies."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepamba.artifact.locate import locate
from jepamba.artifact.store import open_artifact
from jepamba.config import Run, build, flatten, merge, to_dict
from jepamba.train.dial import Choice, apply

SETTING = "train.init_from"
RATES = ("optim.muon_lr", "optim.adam_lr")
RATE_DIVISOR = 20
"""Of a preset's learning rates, which are for random weights (docs/results/fine-tuning-2026-11-29.md)."""


def run_of_layers(base: Mapping[str, Any], *given: Mapping[str, Any]) -> tuple[Run, list[Choice]]:
    """Build the run of `base`, a preset or file, under the layers `given`: overlays, and last the flags.

    With `train.init_from`, network and tokenizer are those of the model that it names, unless the last layer gives
    them. Learning rates that no layer of `given` has are those of `base` divided by `RATE_DIVISOR`, unless `base`
    itself sets `train.init_from`, as the config.toml of such a run does.

    Returns: the run, and the learning rates that were lowered. Raises `ConfigError` as `build` does.
    """
    merged = merge(base, *given)
    if not merged.get(SETTING):
        return build(merged), []
    run = build(merge(base, *given[:-1], _model_settings(merged[SETTING]), *given[-1:]))
    if base.get(SETTING):
        return run, []
    before = flatten(to_dict(run))
    choices = [
        Choice(
            name, before[name] / RATE_DIVISOR, f"{before[name]} / {RATE_DIVISOR}, as the initial weights are trained"
        )
        for name in RATES
        if not any(name in layer for layer in given)
    ]
    return apply(run, choices), choices


def _model_settings(start: str) -> dict[str, Any]:
    """The settings of network and tokenizer of the model `start`."""
    stored = flatten(to_dict(open_artifact(locate(start)).manifest.run))
    layer = {name: value for name, value in stored.items() if name.startswith("model.")}
    layer |= {name: stored[name] for name in ("data.tokenizer", "data.byte_separator")}
    if stored["data.tokenizer"] == "bpe":
        layer["data.vocab"] = max(stored["model.vocab_size"], 264)  # nothing for the dial to choose
    return layer
