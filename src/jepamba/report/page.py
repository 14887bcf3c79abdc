"""HTML elements of a report: one self-contained page for small screens, dark mode and screen readers.

Every function that takes plain text escapes it. As a second safeguard, the page's security policy names the scripts of
the package by their hashes, so that a browser runs no other.
"""

from __future__ import annotations

import hashlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from jepamba.report.records import number


def text(value: Any) -> str:
    """Format `value` as escaped text for an element or an attribute; None becomes a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return escape(f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}")
    if isinstance(value, list | tuple):
        return ", ".join(map(text, value))
    return escape(str(value))


def page(title: str, body: Sequence[str]) -> str:
    """Return the whole document. `body` holds HTML; `title` is plain text."""
    licence = _asset("uPlot-LICENSE.txt").replace("*/", "")
    scripts = [f"{_asset('uPlot.iife.min.js')}\n/*\n{licence}*/\n", _asset("report.js")]
    hashes = " ".join(f"'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}'" for script in scripts)
    policy = f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_asset('uPlot.min.css')}\n{_asset('report.css')}</style>\n</head>\n"
        "<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _asset(name: str) -> str:
    return files("jepamba.report").joinpath("assets", name).read_text(encoding="utf-8")


def section(title: str, *contents: str) -> str:
    """Return a section with a heading, or an empty string if all `contents` are empty."""
    inner = "\n".join(filter(None, contents))
    return f"<section>\n<h2>{text(title)}</h2>\n{inner}\n</section>" if inner else ""


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return large tiles for the main results: pairs of plain text (label, value with its unit)."""
    inner = "".join(f'<div class="tile"><b>{text(value)}</b>{text(label)}</div>' for label, value in values)
    return f'<div class="tiles">{inner}</div>' if inner else ""


def charts(figures: Sequence[str]) -> str:
    """Return charts in as many columns as the page width allows."""
    inner = "".join(figures)
    return f'<div class="charts">{inner}</div>' if inner else ""


def facts(rows: Sequence[tuple[str, str]]) -> str:
    """Return a list of plain text (label, value); rows without a value are left out."""
    inner = "".join(f"<dt>{text(label)}</dt><dd>{text(value)}</dd>" for label, value in rows if value)
    return f'<dl class="facts">{inner}</dl>' if inner else ""


def details(title: str, *contents: str) -> str:
    """Return `contents` folded under `title`, or an empty string if all are empty."""
    inner = "\n".join(filter(None, contents))
    return f"<details><summary>{text(title)}</summary>\n{inner}\n</details>" if inner else ""


def samples(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return generated texts: plain text (when, prompt, continuation) each."""
    inner = "".join(f"<dt>{text(when)}</dt><dd><b>{text(prompt)}</b>{text(more)}</dd>" for when, prompt, more in rows)
    return f'<dl class="card samples">{inner}</dl>' if inner else ""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], highlight: int | None = None) -> str:
    """Return a table. The first column names the rows; numbers are aligned right; row `highlight` is bold."""
    if not rows:
        return ""
    numeric = [all(map(_is_number, (row[i] for row in rows))) for i in range(len(heads))]
    cls = ['class="n" ' if is_numeric else "" for is_numeric in numeric]
    head = "".join(f'<th {cls[i]}scope="col">{text(name)}</th>' for i, name in enumerate(heads))
    lines = []
    for index, row in enumerate(rows):
        cells = "".join(f"<td {cls[i]}>{text(value)}</td>" for i, value in enumerate(row) if i)
        style = ' class="us"' if index == highlight else ""
        lines.append(f'<tr{style}><th scope="row">{text(row[0])}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | None) or (isinstance(value, str) and value[:1] in "+-–[0123456789")


def shares(caption: str, unit: str, values: Mapping[str, Any]) -> str:
    """Return a table of components, largest first, with bars for their shares of the total. Skips non-numbers."""
    sizes = {name: value for name, value in values.items() if number(value) is not None and value >= 0}
    total = sum(sizes.values())
    if not total:
        return ""
    lines = []
    for name, value in sorted(sizes.items(), key=lambda item: -item[1]):
        share = value / total
        lines.append(
            f'<tr><th scope="row">{text(name)}</th><td class="n">{text(value)}</td><td class="n">{share:.1%}</td>'
            f'<td class="share" aria-hidden="true"><div style="width:{100 * share:.1f}%"></div></td></tr>'
        )
    head = (
        f'<th scope="col">component</th><th class="n" scope="col">{text(unit)}</th>'
        '<th class="n" scope="col">share</th><td></td>'
    )
    foot = f'<tr><th scope="row">total</th><td class="n">{text(total)}</td><td class="n"></td><td></td></tr>'
    return (
        f'<div class="scroll"><table><caption>{text(caption)}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody><tfoot>{foot}</tfoot></table></div>"
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Return nested `values` as pairs (dotted key, value)."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{key}"
        found += flat(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return found
