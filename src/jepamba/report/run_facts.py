"""What a run was: its date, command, text, device and software, as labelled lines."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from jepamba.report.records import Metrics, Record, number, section_of


def facts(metrics: Metrics, summary: Record, config: Record) -> list[tuple[str, str]]:
    """Return (label, value) for the head of a report; the value is empty if the files do not have it."""
    start = metrics.starts[0] if metrics.starts else {}
    environment = section_of(summary, "environment")
    device = str(environment.get("device") or next((str(e.get("what")) for e in metrics.events), ""))
    versions = [f"{name} {environment[key]}" for key, name in _SOFTWARE.items() if environment.get(key)]
    return [
        ("started", date(start.get("time"))),
        ("command", str(start.get("command") or "")),
        ("preset", str(summary.get("preset") or "")),
        ("text", _text(summary, section_of(config, "data"))),
        ("device", device.removeprefix("computing on ")),
        ("software", ", ".join(versions)),
    ]


_SOFTWARE = {"python": "Python", "torch": "PyTorch"}


def date(value: Any) -> str:
    """Format the ISO time `value` to the minute with its zone; an empty string if it is none."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M %Z")
    except ValueError:
        return ""


def _text(summary: Record, data: Mapping[str, Any]) -> str:
    train, val = (str(data.get(key) or "") for key in ("train", "val"))
    if not train:
        return ""
    tokens, size = number(summary.get("train_tokens")), number(section_of(summary, "bpb_plain").get("bytes"))
    count = f" ({tokens:,.0f} tokens)" if tokens is not None else ""
    held_out = f", {size:,.0f} bytes held out" if size is not None else ""
    return f"{_short(train)}{count}{held_out}{f' from {_short(val)}' if val else ''}"


def _short(place: str) -> str:
    """Return a name in place of a path; names of the hub and of built-in texts stay."""
    return place if "://" in place else Path(place).name or place
