"""HTML elements of a report: one self-contained page for small screens, dark mode and screen readers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from jepamba.report.charts import CSS, CSS_DARK
from jepamba.report.records import number

_CSS = f"""
:root {{ color-scheme: light dark; {CSS} --page: #fbfbfd; --card: #ffffff; --mute: #5b6472; --bar: #d5e2f8; }}
@media (prefers-color-scheme: dark) {{ :root {{ {CSS_DARK} --page: #12151b; --card: #1a1f28; --mute: #a3adbd;
--bar: #2b436b; }} }}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; max-width: 68rem; padding: 1rem; background: var(--page); color: var(--ink);
font: 16px/1.5 system-ui, sans-serif; }}
h1 {{ font-size: 1.6rem; line-height: 1.2; margin: .5rem 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.2rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid var(--faint); padding-bottom: .2rem; }}
p {{ max-width: 46rem; }} .mute {{ color: var(--mute); font-size: .9rem; }}
.tiles, .charts {{ display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9.5rem, 1fr)); }}
.charts {{ grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr)); }}
.tile, .chart, .sample {{ background: var(--card); border: 1px solid var(--faint); border-radius: .6rem;
padding: .7rem .9rem; margin: 0; min-width: 0; }}
.tile b {{ display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }}
.chart svg {{ display: block; width: 100%; height: auto; }}
.sample {{ margin: .6rem 0; }} .sample blockquote {{ margin: 0; white-space: pre-wrap; overflow-wrap: anywhere;
font-family: Georgia, serif; }}
.scroll {{ overflow-x: auto; }}
table {{ border-collapse: collapse; min-width: min(100%, 24rem); margin-bottom: 1.2rem;
font-variant-numeric: tabular-nums; }}
caption {{ text-align: left; color: var(--mute); font-size: .9rem; padding-bottom: .3rem; }}
th, td {{ text-align: left; padding: .3rem 1.2rem .3rem .2rem; border-bottom: 1px solid var(--faint);
vertical-align: top; }}
th[scope=row] {{ font-weight: 500; }} .n {{ text-align: right; white-space: nowrap; }}
.share {{ width: 16rem; min-width: 6rem; }} .share div {{ background: var(--bar); height: 1.1em;
border-radius: .2rem; }}
tr.us th, tr.us td {{ font-weight: 700; }}
pre {{ overflow-x: auto; background: var(--card); border: 1px solid var(--faint); border-radius: .6rem;
padding: .8rem; font-size: .85rem; }}
"""


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


def preformatted(source: str) -> str:
    """Return `source` unchanged in a scrollable box."""
    return f"<pre>{escape(source)}</pre>"


def page(title: str, body: Sequence[str]) -> str:
    """Return the whole document. `body` holds HTML; `title` is plain text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(filter(None, body))
        + "\n</main>\n</body>\n</html>\n"
    )


def section(title: str, *contents: str) -> str:
    """Return a section with a heading, or an empty string if all `contents` are empty."""
    inner = "\n".join(filter(None, contents))
    return f"<section>\n<h2>{text(title)}</h2>\n{inner}\n</section>" if inner else ""


def tiles(values: Sequence[tuple[str, str]]) -> str:
    """Return large tiles for the main results: pairs of plain text (label, value with its unit)."""
    inner = "".join(f'<div class="tile"><b>{text(value)}</b>{text(label)}</div>' for label, value in values)
    return f'<div class="tiles">{inner}</div>' if inner else ""


def charts(svgs: Sequence[str]) -> str:
    """Return charts in as many columns as the page width allows."""
    inner = "".join(f'<figure class="chart">{svg}</figure>' for svg in svgs)
    return f'<div class="charts">{inner}</div>' if inner else ""


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[Any]], highlight: int | None = None) -> str:
    """Return a table. The first column names the rows; numbers are aligned right; row `highlight` is bold."""
    if not rows:
        return ""
    numeric = [all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(heads))]
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
