"""Copies a model to the Hugging Face hub, and from there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from jepamba.artifact.heads import HEADS
from jepamba.artifact.locate import ARTIFACT, hub_model, locate
from jepamba.artifact.store import load_artifact
from jepamba.config import MACHINE_SETTINGS, flatten, to_dict
from jepamba.data.hub import http_status, hub_reason
from jepamba.errors import UserError
from jepamba.folder_lock import new_folder
from jepamba.hub.card import model_card
from jepamba.hub_names import HUB, refuse_mistyped
from jepamba.io import check_writable, sha256_of
from jepamba.presets import load_preset
from jepamba.report.records import read_config, read_summary

CARD = "README.md"
_REFUSALS = {
    401: "the hub does not accept the token; set HF_TOKEN to one that may write",
    403: "the token may not write there; set HF_TOKEN to one that may",
    409: "this repository exists; --update adds a commit to it",
}


class Pushed(NamedTuple):
    """What `push` wrote."""

    url: str
    """Address of the repository."""
    commit: str
    """The new commit."""
    files: list[str]


def push(
    path: str | Path, name: str, *, license: str, text: str = "", private: bool = False, update: bool = False
) -> Pushed:
    """Copy an artifact, its JEPA heads if they are beside it, and a model card to the repository `name` of the hub.

    The card has the figures of summary.json beside the artifact, if they are of this artifact.

    Arguments:
        path: An artifact or the folder of a run.
        name: "owner/name". The repository must not exist yet.
        license: Licence of the training text, as the hub abbreviates it: `cc-by-4.0`, `mit`, `other`.
        text: What the training text is. Default: the file or data set that the run names, without its folder.
        private: Make the repository private.
        update: If the repository exists, add a commit to it.

    Raises:
        UserError: The artifact is missing or invalid, there is no token, the repository exists, or the hub refuses.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, get_token

    refuse_mistyped(name)
    name = name.removeprefix(HUB)
    place = locate(path)
    artifact = load_artifact(place)
    if name.count("/") != 1:
        raise UserError(f"{name!r}: not the name of a model on the hub; give owner/name")
    if get_token() is None:
        raise UserError(f"{name}: no token for the hub; set HF_TOKEN, or run `hf auth login`")
    heads = place.with_name(HEADS)
    card = model_card(
        name,
        artifact,
        place.stat().st_size,
        license=license,
        text=text or _training_text(place.parent),
        summary=(summary := _summary(place)),
        heads=heads.exists(),
        changed=_changed_settings(place.parent, str((summary or {}).get("preset") or "")),
    )
    files: dict[str, Path | bytes] = {ARTIFACT: place, CARD: card.encode()}
    if heads.exists():
        files[HEADS] = heads
    api = HfApi()
    with _as_user_errors(name):
        # First, so that a licence that the hub does not know leaves no empty repository.
        ModelCard(card).validate(repo_type="model")
        url = api.create_repo(name, private=private or None, exist_ok=update)
        operations = [CommitOperationAdd(path, content) for path, content in files.items()]
        commit = api.create_commit(name, operations, commit_message=f"{ARTIFACT} of {place.stat().st_size:,} bytes")
    return Pushed(str(url), commit.oid, list(files))


def pull(name: str, out: Path | None = None) -> Path:
    """Copy a model of the hub into a new folder: the artifact, and the JEPA heads and model card if they are there.

    Arguments:
        name: `owner/name[@revision][/file]`, also after `hf://`.
        out: The folder. None: `runs/` and the name of the model.

    Returns: the folder, which every command takes in place of an artifact.
    Raises: `UserError` if `out` exists, the hub has no such model or cannot be reached, or the artifact is invalid.
    """
    refuse_mistyped(name)
    repository, file = hub_model(f"{HUB}{name.removeprefix(HUB)}")
    out = out or Path("runs", repository.name.partition("/")[2])
    if os.path.exists(out):
        raise UserError(f"{out} already exists; choose another folder")
    check_writable(out)
    folder = f"{file.rpartition('/')[0]}/".lstrip("/")
    sources = {ARTIFACT: file, HEADS: folder + HEADS, CARD: folder + CARD}
    found = {
        target: repository.fetch(repository.files[path]) for target, path in sources.items() if path in repository.files
    }
    load_artifact(found[ARTIFACT])
    with new_folder(out) as building:
        for target, path in found.items():
            shutil.copyfile(path, building / target)
    return out


def _training_text(folder: Path) -> str:
    """The training text of the run in `folder`. A local name comes without its folders, which are private."""
    train = ((read_config(folder) or {}).get("data") or {}).get("train")
    if not isinstance(train, str) or not train:
        return "unknown"
    return f"`{train if train.startswith(HUB) else Path(train).name}`"


def _changed_settings(folder: Path, preset: str) -> list[str]:
    """The settings of the run in `folder` that are not those of `preset`, but for paths and what the dial chose.

    Those of the network are left out if they are those of initial weights. Empty for a preset in a file.
    """
    if not preset or ".toml" in preset:
        return []
    try:
        run, base = load_preset(str(folder / "config.toml")), load_preset(preset)
    except UserError:
        return []
    found, before = flatten(to_dict(run)), flatten(to_dict(base))
    skipped = {*MACHINE_SETTINGS, *base.train.dial, "train.dial", "model.vocab_size"}
    if run.train.init_from:
        skipped |= {"data.vocab", *(name for name in found if name.startswith("model."))}
    return [name for name, value in found.items() if value != before[name] and name not in skipped]


def _summary(place: Path) -> dict[str, object] | None:
    """The summary.json beside the artifact at `place`, or None if it is missing or describes another artifact."""
    summary = read_summary(place.parent)
    if summary is None or summary.get("artifact_sha256") != sha256_of(place, "the artifact"):
        return None
    return summary


@contextmanager
def _as_user_errors(name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        refusal = _REFUSALS.get(http_status(error) or 0)
        invalid = isinstance(error, ValueError) and http_status(error) is None
        reason = refusal or (" ".join(str(error).split()) if invalid else hub_reason(error, "model"))
        raise UserError(f"{name}: {reason}") from error
