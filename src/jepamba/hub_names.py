"""The prefix of names on the Hugging Face hub, and the names that lack it by mistake."""

from __future__ import annotations

import os
import re
from pathlib import Path

from jepamba.errors import UserError

HUB = "hf://"
"""Prefix of the name of a model or data set on the hub."""
_MEANT = re.compile(r"(hf|huggingface)(:/*|//+)|(https?:/*)?(www\.)?(huggingface\.co|hf\.co)(/+|$)", re.IGNORECASE)
_KIND = re.compile(r"(models?|datasets?)/(?=[^/]+/[^/])")
_NAME = re.compile(r"[^/@:]+/[^/@:]+")


def is_meant_for_hub(name: str) -> bool:
    """Whether `name` begins as a name on the hub does, rightly or nearly, and is no local path."""
    return name.startswith(HUB) or (_MEANT.match(name) is not None and not os.path.exists(name))


def refuse_mistyped(name: str | Path) -> None:
    """Raise `UserError` for a name on the hub whose prefix is mistyped: `hf:owner/name`, an address, a `Path`."""
    text = str(name)
    match = _MEANT.match(text)
    if match is None or text.startswith(HUB) or not is_meant_for_hub(text):
        return
    found = _NAME.match(_KIND.sub("", text[match.end() :], count=1))
    meant = found[0] if found else "owner/name"
    raise UserError(f"{text}: no such path; if it is a name on the hub, give {HUB}{meant}")
