"""Where an artifact is: a file, the folder of a run, a model of the Hugging Face hub, or the model in the package."""

from __future__ import annotations

import re
from pathlib import Path

from jepamba.artifact.heads import HEADS
from jepamba.data.hub import Repository
from jepamba.data.hub_text import COMMIT
from jepamba.errors import UserError
from jepamba.hub_names import HUB, refuse_mistyped

ARTIFACT = "artifact.jepa"
"""Name of the artifact in the folder of a run and in a repository of the hub."""
# A bundle has no `__file__`.
SHIPPED = Path(globals().get("__file__", "")).parent.parent / "shipped" / "model.jepa"
"""The model in the package, which is used where no artifact is named."""
SOURCES = SHIPPED.with_name("SOURCES.md")
"""The sources of its text, with their licences."""
_NAME = re.compile(r"hf://([^/@:]+/[^/@:]+)(?:@([^/:]+))?(?:/([^:]+))?")


def locate(name: str | Path) -> Path:
    """Return the path of the artifact `name`: a file, the folder of a run, or `hf://owner/name[@revision][/file]`.

    From the hub, the file (default: artifact.jepa) and the JEPA heads beside it go into the cache of huggingface_hub.
    If the revision is a commit whose file is in the cache, the hub is not asked.

    Raises:
        UserError: If the folder has no artifact, or the hub has no such model or file or cannot be reached.
    """
    if str(name).startswith(HUB):
        return _from_hub(str(name))
    refuse_mistyped(name)
    path = Path(name)
    if not path.is_dir():
        return path
    if not (path / ARTIFACT).exists():
        # As `train.run_folder` writes it, which this package does not import.
        is_run = (path / "config.toml").exists()
        remedy = f"`jepamba resume {path}` finishes this run" if is_run else "give an artifact or the folder of a run"
        raise UserError(f"{path}: no {ARTIFACT} here; {remedy}")
    return path / ARTIFACT


def pinned_model(name: str) -> str:
    """Return `name`, as in `hf://owner/name[@revision][/file]`, with the present commit as its revision.

    Raises `UserError` as `locate` does. A commit is not looked up.
    """
    repository, revision, file = _parsed(name)
    if not COMMIT.fullmatch(revision):
        revision = Repository(repository, revision, "model").commit
    return f"{HUB}{repository}@{revision}{'' if file == ARTIFACT else f'/{file}'}"


def hub_model(name: str) -> tuple[Repository, str]:
    """Return the repository of `hf://owner/name[@revision][/file]` and the path of the artifact in it.

    Raises `UserError` as `locate` does.
    """
    repository_name, revision, file = _parsed(name)
    repository = Repository(repository_name, revision, "model")
    if file not in repository.files:
        found = ", ".join(sorted(path for path in repository.files if path.endswith(".jepa"))) or "none"
        raise UserError(f"{name}: no {file} in this repository; its artifacts: {found}")
    return repository, file


def _from_hub(name: str) -> Path:
    from huggingface_hub import try_to_load_from_cache

    repository_name, revision, file = _parsed(name)
    if COMMIT.fullmatch(revision):
        # The heads were fetched before it.
        cached = try_to_load_from_cache(repository_name, file, revision=revision, repo_type="model")
        if isinstance(cached, str):
            return Path(cached)
    repository, file = hub_model(name)
    heads = f"{file.rpartition('/')[0]}/{HEADS}".lstrip("/")
    if heads in repository.files:
        repository.fetch(repository.files[heads])
    return repository.fetch(repository.files[file])


def _parsed(name: str) -> tuple[str, str, str]:
    """Return repository, revision and file."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise UserError(f"{name}: not the name of a model; give hf://owner/name[@revision][/file]")
    return match[1], match[2] or "main", match[3] or ARTIFACT
