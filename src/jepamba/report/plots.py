"""Charts for a page: the data as JSON, which `assets/report.js` draws with uPlot.

The reader zooms by dragging and sees the values at the cursor.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape

Points = Sequence[tuple[float, float]]

COLOURS = 6
"""Number of colours in `assets/report.css`: `--c1` and on."""
_MAX_POINTS = 600
_CLIPPED_SHARE = 0.04
"""Share of the points, the highest, that a clipped axis may leave out."""


@dataclass(frozen=True)
class Line:
    """A curve: its label in the legend, its points in order of x, and how it is drawn."""

    label: str
    points: Points
    colour: int = 1
    """1 to `COLOURS`."""
    faint: bool = False
    dashed: bool = False
    dots: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line with its label."""

    label: str
    value: float


def line(label: str, points: Points, index: int, *, dots: bool = False) -> Line:
    """Return the curve `index` (from 0) of many: the colours repeat with dashes."""
    return Line(label, points, 1 + index % COLOURS, dashed=index // COLOURS % 2 == 1, dots=dots)


def chart(
    title: str,
    x_label: str,
    y_label: str,
    lines: Sequence[Line],
    *,
    levels: Sequence[Level] = (),
    log_y: bool = False,
    clip: bool = False,
    height: int = 240,
) -> str:
    """Return a figure with `lines`, or an empty string if none has points.

    Arguments:
        log_y: Use a logarithmic axis if all values are positive.
        clip: Leave the highest points, the start of training, outside of the axis until the reader zooms to them.
        height: Pixels.
    """
    lines = [item for item in lines if item.points]
    if not lines:
        return ""
    drawn = [{**asdict(item), "points": list(zip(*thin(item.points), strict=True))} for item in lines]
    values = sorted(y for item in lines for _, y in thin(item.points))
    top = max([values[math.ceil(len(values) * (1 - _CLIPPED_SHARE)) - 1], *(level.value for level in levels)])
    spec = {
        "x": x_label,
        "y": y_label,
        "series": drawn,
        "levels": [asdict(level) for level in levels],
        "log": log_y and values[0] > 0,
        "top": top if clip else None,
        "height": height,
    }
    ranges = "; ".join(f"{item.label}: from {item.points[0][1]:.4g} to {item.points[-1][1]:.4g}" for item in lines)
    described = escape(f"{title}. {y_label} over {x_label}. {ranges}")
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<div class="plot" role="img" aria-label="{described}"></div>'
        f'<script type="application/json">{json_text(spec)}</script></figure>'
    )


def json_text(value: object) -> str:
    """Return `value` as JSON that cannot end a script element. Numbers have at most seven digits."""
    text = json.dumps(_rounded(value), allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return float(f"{value:.7g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value


def thin(points: Points, max_points: int = _MAX_POINTS) -> list[tuple[float, float]]:
    """Reduce `points` to at most `max_points`: average equal groups of neighbours; keep the first and last point."""
    if len(points) <= max_points:
        return list(points)
    inner, buckets = points[1:-1], max_points - 2
    edges = [len(inner) * i // buckets for i in range(buckets + 1)]
    groups = (inner[a:b] for a, b in itertools.pairwise(edges))
    means = [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]
    return [points[0], *means, points[-1]]
