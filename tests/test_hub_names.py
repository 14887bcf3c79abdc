"""Names on the hub, and those that only look so."""

from __future__ import annotations

from pathlib import Path

import pytest

from jepamba.errors import UserError
from jepamba.hub_names import is_meant_for_hub, refuse_mistyped


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hf:/x", "owner/name"),
        ("hf:", "owner/name"),
        ("hf:owner/name", "owner/name"),
        ("hf//me/tales", "me/tales"),
        ("HF://me/tales@v1", "me/tales"),
        ("huggingface:me/tales", "me/tales"),
        ("huggingface.co/me/tales", "me/tales"),
        ("https://huggingface.co/datasets/me/tales/tree/main", "me/tales"),
        (str(Path("hf://me/tales")), "me/tales"),
    ],
)
def test_a_mistyped_name_is_answered_with_the_right_one(name: str, meant: str) -> None:
    assert is_meant_for_hub(name)
    with pytest.raises(UserError) as caught:
        refuse_mistyped(name)
    assert str(caught.value) == f"{name}: no such path; if it is a name on the hub, give hf://{meant}"


def test_other_names_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hf:").mkdir()
    for name in ("hf://me/tales", "hf:", "hf/tales", "hf", "hfs:x", "me/tales", "https://example.org/a", ""):
        refuse_mistyped(name)
        assert is_meant_for_hub(name) is (name == "hf://me/tales")
