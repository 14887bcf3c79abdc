"""Charts of the latents of several models: the spectrum of their covariance, and their cosine over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jepamba.report.charts import line_chart
from jepamba.report.plots import Line

SMALLEST = 1e-6
"""Shares of the variance below it are not drawn."""


def spectrum_chart(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a chart of the shares of the variance along the principal axes.

    Arguments: `measured`, by label what `jepamba latents --measure --json` prints.
    """
    lines = [
        Line(label, [(axis, share) for axis, share in enumerate(found["spectrum"], 1) if share >= SMALLEST])
        for label, found in measured.items()
    ]
    return line_chart("Spectrum of the latents", "principal axis", "share of the variance", lines, log_y=True)


def cosine_chart(measured: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a chart of the cosine of two centred latents over the tokens between them.

    Arguments: `measured`, by label what `jepamba latents --probe --json` prints.
    """
    lines = [
        Line(label, [(float(lag), cosine) for lag, cosine in found["cosine"].items()])
        for label, found in measured.items()
    ]
    return line_chart("Latents over time", "tokens between two latents", "cosine", lines, dots=True)
