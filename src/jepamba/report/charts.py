"""Charts as SVG files for Markdown pages, which run no script; their colours follow light and dark mode.

Matplotlib draws with placeholder colours, which CSS variables then replace. Text stays text, so that readers can search
it, scale it and hear it. Every chart has a title and a description for screen readers.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from jepamba.report.plots import Line, Points, thin

CSS = """--ink: #1c2330; --faint: #c9cfd8; --c1: #2563c9; --c2: #c2410c; --c3: #15803d; --c4: #9333b8; --c5: #a16207;
--c6: #0e7490;"""
CSS_DARK = """--ink: #e6e9ef; --faint: #454d5a; --c1: #7aa9f7; --c2: #fb8f5a; --c3: #63cf86; --c4: #d08bf0;
--c5: #e0b94f; --c6: #5cc8dc;"""

_INK, _FAINT = "#000001", "#000002"
_SERIES = tuple(f"#0000a{i}" for i in range(1, 7))
_VARIABLES = {_INK: "var(--ink)", _FAINT: "var(--faint)"} | {c: f"var(--c{i})" for i, c in enumerate(_SERIES, 1)}

_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "jepamba",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "text.color": _INK,
    "text.parse_math": False,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
}


def draw(title: str, description: str, paint: Callable[[Figure], None], size: tuple[float, float] = (6.0, 3.2)) -> str:
    """Return an `<svg>` element. `paint` draws into a Matplotlib figure of `size` (inches).

    The page (`CSS`, `CSS_DARK`) or `standalone` must define the colours as CSS variables. The output is deterministic.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return _themed(buffer.getvalue(), title, description)


def line_chart(
    title: str, x_label: str, y_label: str, lines: Sequence[Line], *, log_y: bool = False, dots: bool = False
) -> str:
    """Return a chart of `lines` as an `<svg>` element. A single line has no legend.

    Arguments: `log_y`, use a logarithmic axis if all values are positive; `dots`, draw a marker at every point.
    """
    lines = [line for line in lines if line.points]

    def paint(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        for line, colour in zip(lines, _SERIES * len(lines), strict=False):
            xs, ys = zip(*thin(line.points), strict=True)
            axes.plot(
                xs, ys, color=colour, label=line.label, marker="o" if dots or len(xs) == 1 else "", markersize=3.5
            )
        axes.set_title(title)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        if log_y and all(y > 0 for line in lines for _, y in line.points):
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _position: f"{y:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        if len(lines) > 1:
            axes.legend()

    ranges = "; ".join(f"{line.label}: from {line.points[0][1]:.4g} to {line.points[-1][1]:.4g}" for line in lines)
    return draw(title, f"{y_label} over {x_label}. {ranges}", paint)


def interval_chart(title: str, rows: Sequence[tuple[str, float, float, float, Points]]) -> str:
    """Return a chart of differences in BPB with intervals, one row each, and a line at 0.

    Arguments: `rows`, tuples (label, mean, low, high, single values). The y of the single values is ignored. A single
    pair has an infinite interval, which is not drawn.
    """

    x_label = "difference in BPB, negative is better\ndot: mean, bar: 95 % interval, ticks: seeds"

    def paint(figure: Figure) -> None:
        axes: Axes = figure.subplots()
        axes.axvline(0, color=_INK, linewidth=1)
        for row, (_label, mean, low, high, singles) in enumerate(rows):
            if abs(low) != float("inf"):
                axes.plot([low, high], [row, row], color=_SERIES[0], linewidth=2)
            axes.plot([x for x, _ in singles], [row] * len(singles), "|", color=_SERIES[1], markersize=9)
            axes.plot([mean], [row], "o", color=_SERIES[0], markersize=6)
        axes.set_yticks(range(len(rows)), [row[0] for row in rows])
        axes.set_ylim(max(len(rows), 1) - 0.5, -0.5)
        axes.set_title(title)
        axes.set_xlabel(x_label)

    summary = "; ".join(f"{label}: {mean:+.4f} [{low:+.4f}, {high:+.4f}]" for label, mean, low, high, _ in rows)
    return draw(title, f"{x_label}: {summary}".replace("\n", "; "), paint, (6.4, 1.3 + 0.4 * max(len(rows), 1)))


def standalone(svg: str) -> str:
    """Return `svg` as a standalone file that defines its colours for light and dark mode."""
    style = f"<style>svg {{ {CSS} }} @media (prefers-color-scheme: dark) {{ svg {{ {CSS_DARK} }} }}</style>"
    head, _, rest = svg.partition(">")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{head}>{style}{rest}\n'


def _themed(svg: str, title: str, description: str) -> str:
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Element ids must be unique on a page with several charts.
    prefix = re.sub(r"\W+", "-", title.lower()).strip("-")
    body = re.sub(r'\bid="', f'id="{prefix}-', body)
    body = body.replace('href="#', f'href="#{prefix}-').replace("url(#", f"url(#{prefix}-")
    for marker, variable in _VARIABLES.items():
        body = body.replace(marker, variable)
    # Use the font and the width of the page; the view box keeps the aspect ratio.
    body = body.replace("'DejaVu Sans', sans-serif", "inherit").replace("'DejaVu Sans'", "inherit")
    view = re.search(r'viewBox="[^"]*"', body)
    head = (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        f' {view.group() if view else ""} role="img" aria-labelledby="{prefix}-t {prefix}-d"'
        ' font-family="system-ui, sans-serif">'
        f'<title id="{prefix}-t">{html.escape(title)}</title><desc id="{prefix}-d">{html.escape(description)}</desc>'
    )
    return head + body[body.index(">") + 1 :].strip()
