"""The functions of the Python API: load a trained model, train one. docs/python.md has examples."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from jepamba.artifact.heads import HEADS, load_heads
from jepamba.artifact.locate import SHIPPED, locate
from jepamba.artifact.store import load_artifact
from jepamba.config import Run, flatten, setting_types, to_dict
from jepamba.errors import UserError
from jepamba.folder_lock import unused_folder
from jepamba.io import sha256_of
from jepamba.jepa import JepaHeads
from jepamba.presets import preset_layers
from jepamba.progress import is_silent
from jepamba.text_model import TextModel


def load(path: str | Path | None = None, device: torch.device | str | None = None) -> TextModel:
    """Load a trained model. Nothing in its files is executed.

    Arguments:
        path: An artifact, the folder of a run, a checkpoint (`runs/mine/checkpoints/step-000000400`), or
            `hf://owner/name[@revision][/file]` for a model of the Hugging Face hub. A checkpoint has its JEPA heads and
            the temperature 1. None: the small model in the package.
        device: None: a GPU if there is one, else the CPU.

    Raises:
        UserError: One line that names the file, if it is missing or invalid, or the device, if there is no such one.
    """
    device = _device(device)
    path = SHIPPED if path is None else path
    if Path(path).is_dir():
        from jepamba.train.trained import is_checkpoint, load_trained  # here, as it imports all of training

        if is_checkpoint(path):
            trained = load_trained(Path(path))
            trained.artifact.model.to(device)
            return TextModel(trained.artifact, lambda: trained.heads.to(device))
    place = locate(path)
    artifact = load_artifact(place, device)

    def heads() -> JepaHeads:
        beside = place.with_name(HEADS)
        if not beside.exists():
            raise UserError(
                f"{beside}: no such file; z and its prediction need the JEPA heads: load a checkpoint, or train with "
                "train.keep_heads on and a jepa.weight or jepa.sigreg_weight above 0"
            )
        return load_heads(beside, artifact.model.config.d_model, sha256_of(place, "the artifact"), device)

    return TextModel(artifact, heads)


def _device(name: torch.device | str | None) -> torch.device:
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(f"device {name}: not on this machine ({str(error).splitlines()[0]}); try 'cpu'") from None
    return device


def train(preset: str | Run, *, out: str | Path | None = None, **sections: Mapping[str, Any]) -> TextModel:
    """Train a model, pack it, score it, and load it, as `jepamba train` does.

    Arguments:
        preset: A preset with `+overlays`, the path of a TOML file, or a `Run`.
        out: Folder of the run. None: `runs/` and the name of the preset, or the first of `-2`, `-3` … that is unused.
        sections: Sections of settings, as in `data={"train": "input.txt"}, train={"steps": 200}`.

    Raises:
        UserError: For a wrong setting, bad data, or a folder that holds a run.
        TypeError: For an argument of another type, such as a setting that is not in its section.
    """
    if not isinstance(preset, str | Run):
        raise TypeError(f"preset is of type {type(preset).__name__}: pass the name of a preset, a file, or a Run")
    changes = _settings(sections)
    # Imported here, so that `load` does not import training.
    from jepamba.train import train as train_run
    from jepamba.train.initial_settings import run_of_layers

    if isinstance(preset, Run):
        layers, name = [flatten(to_dict(preset))], "run"
    else:
        layers, name = preset_layers(preset), Path(preset).name.removesuffix(".toml")
    run, choices = run_of_layers(*layers, changes)
    with unused_folder(Path("runs") / name) if out is None else nullcontext(Path(out)) as folder:
        train_run(run, folder, preset="" if isinstance(preset, Run) else preset, choices=choices)
        return _finished(folder)


def resume(run: str | Path, **sections: Mapping[str, Any]) -> TextModel:
    """Continue a stopped run from its newest checkpoint, and load its model, as `jepamba resume` does.

    Arguments:
        run: The folder of the run.
        sections: A new budget, or where this machine has the files, as in `train={"steps": 2000}`.

    Raises:
        UserError: If there is no run in the folder, another process writes to it, its text differs, or the setting is
            one that a run keeps.
        TypeError: For a setting that is not in its section.
    """
    changes = _settings(sections)
    from jepamba.train import resume as resume_run

    resume_run(Path(run), changes)
    return _finished(Path(run))


def _finished(folder: Path) -> TextModel:
    """Write the report of the finished run in `folder`, and load its model."""
    from jepamba.report.html import write_report

    if not is_silent():
        write_report(folder)
    return load(folder)


def _settings(sections: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return the settings of `sections` by their dotted names."""
    for name, section in sections.items():
        if not isinstance(section, Mapping):
            raise TypeError(_not_a_section(name, section))
    return flatten(sections)


def _not_a_section(name: str, value: object) -> str:
    """The message for an argument `name` that is not a section of settings, as `train={"steps": 3}` is."""
    for dotted in setting_types():
        section, _, setting = dotted.partition(".")
        if setting == name:
            return f"{name} is a setting of the section {section}: pass {section}={{{name!r}: {value!r}}}"
    return f"{name} = {value!r}: pass a dictionary of settings, as in train={{'steps': 200}}"
