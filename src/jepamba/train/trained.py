"""Load the model of a training checkpoint, for evaluation."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from jepamba.artifact.locate import ARTIFACT
from jepamba.artifact.store import Artifact, open_artifact
from jepamba.config import Run
from jepamba.errors import UserError, one_line
from jepamba.jepa import JepaHeads
from jepamba.model import LanguageModel
from jepamba.train.checkpoint import STATE, load_checkpoint
from jepamba.train.init_from import run_corpus
from jepamba.train.run_folder import lost_file, read_run

_WEIGHTS = "weights/"


@dataclass(frozen=True)
class Trained:
    """The modules of a checkpoint on the CPU, in evaluation mode and without gradients."""

    path: Path
    artifact: Artifact
    """The model has its master weights, which a pass in evaluation mode quantizes as the export does. The temperature
    is 1, `run` has all settings, and there is no header."""
    jepa_heads: JepaHeads | None

    @property
    def heads(self) -> JepaHeads:
        """The projector and predictor. Raises `UserError` for a run without them."""
        if self.jepa_heads is None:
            raise UserError(f"{self.path}: the run has no JEPA heads: jepa.weight and jepa.sigreg_weight are 0")
        return self.jepa_heads


def is_checkpoint(path: str | Path) -> bool:
    """Whether `path` is the folder of a checkpoint."""
    return (Path(path) / STATE).is_file()


def load_trained(path: Path) -> Trained:
    """Load the checkpoint at `path` in the folder of its run (`runs/mine/checkpoints/step-000000400`).

    The tokenizer is that of the run's artifact, or, while there is none, of the training text.

    Raises `UserError` if the checkpoint is damaged or does not fit the run.
    """
    folder = path.resolve().parents[1]
    run, _ = read_run(folder)
    tensors, state = load_checkpoint(path)
    try:
        model, heads = _modules(run, tensors, state["bit_allocation"])
        fingerprint = state["data"]["tokenizer"]
    except (KeyError, TypeError, AttributeError, RuntimeError, ValueError) as error:
        reason = one_line(error)
        raise UserError(f"{path}: does not fit the configuration of its run: {reason}") from None
    packed = folder / ARTIFACT
    lost = None if packed.exists() else lost_file(run)
    if lost:
        raise UserError(f"{lost[1]}, and the checkpoint has no tokenizer; put it there, or finish the run")
    tokenizer = open_artifact(packed).tokenizer if packed.exists() else run_corpus(run).tokenizer
    if tokenizer.fingerprint != fingerprint:
        raise UserError(f"{path}: the run has another tokenizer than this checkpoint; has its training text changed?")
    return Trained(path, Artifact(model, tokenizer, run, 1.0, {}), heads)


def _modules(
    run: Run, tensors: dict[str, Tensor], bit_allocation: dict[str, int]
) -> tuple[LanguageModel, JepaHeads | None]:
    # The random initial weights are replaced. Drawing them must not change the caller's random state.
    with torch.random.fork_rng(devices=[]):
        model = LanguageModel(run.model, run.quant)
        heads = JepaHeads(run.jepa, run.model.d_model) if run.jepa.active else None
    model.to(torch.bfloat16 if run.train.masters == "bf16" else torch.float32)
    model.set_bit_allocation(bit_allocation)
    modules = nn.ModuleDict({"model": model} if heads is None else {"model": model, "heads": heads})
    modules.load_state_dict({n.removeprefix(_WEIGHTS): v for n, v in tensors.items() if n.startswith(_WEIGHTS)})
    modules.eval().requires_grad_(False)
    return model, heads
