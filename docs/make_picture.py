"""Draw the pictures of the manual into docs/img: `.venv/bin/python docs/make_picture.py`.

loss.svg: the run and the figures of the published script in docs/results/submission-bpe-400.md. record.svg: figures of
the notes that docs/results/record.md links. latent-spectrum.svg and latent-cosine.svg: what `jepamba latents --latent h
--measure --probe --json` printed of seed 1 of each arm of a study, in docs/results/jepa/LATENTS/latents-ARM-h.json.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from jepamba.report.charts import line_chart, standalone
from jepamba.report.plots import Line
from jepamba.report.records import read_metrics, series, with_train_bpb

DOCS = Path(__file__).parent
PUBLISHED_SCRIPT = [(200.0, 1.6248), (400.0, 1.4755)]
"""(step, BPB of the held-out text)."""


LATENTS = "quick-jepa-forms"
"""The study whose latents are drawn."""
RECORD_QUARTER = {
    "pilot's settings, 10 layers": [(16.0, 1.5285)],
    "combined recipe, 8 layers": [(16.0, 1.4581), (30.0, 1.3657), (120.0, 1.2266)],
    "… bits chosen for 15.85 MB": [(120.0, 1.2153)],
    "… and a state of 128": [(120.0, 1.2034)],
}
"""(GPU-seconds, BPB carried) on the first quarter of the validation text; 30 s is the mean of five runs."""
RECORD_WHOLE = {
    "whole text: published settings (first: sliding)": [(181.0, 1.3667), (1200.0, 1.1576)],
    "whole text: pilot's settings, then best": [(120.0, 1.2386), (120.0, 1.2249)],
    "whole text: best, 16,384 pieces": [(120.0, 1.2079), (540.0, 1.1128), (1200.0, 1.0997)],
}
"""The same on the whole validation text. The published settings at 181 s were scored with sliding windows."""


def record() -> str:
    """Return the SVG file: BPB over GPU-seconds."""
    lines = [Line(label, points) for label, points in (RECORD_QUARTER | RECORD_WHOLE).items()]
    return standalone(line_chart("BPB carried", "GPU-seconds of training", "bits per byte", lines, dots=True))


def picture() -> str:
    """Return the SVG file: bits per decoded byte over the steps."""
    metrics = read_metrics(DOCS / "results/submission-bpe-400/metrics.jsonl")
    training = [point for point in series(with_train_bpb(metrics.steps), "step", "train_bpb") if point[0] >= 50]
    lines = [
        Line("jepamba, training text", training),
        Line("jepamba, held-out text", series(metrics.vals, "step", "bpb")),
        Line("published script, held-out text", PUBLISHED_SCRIPT),
    ]
    return standalone(line_chart("Same model size, data, seed and number of steps", "step", "bits per byte", lines))


def latent_pictures(measured: dict[str, dict[str, Any]]) -> tuple[str, str]:
    """Return two SVG files: shares of the variance along the principal axes (from 1e-6 on), and the cosine over lags.

    Arguments: `measured`, by label what `jepamba latents --measure --probe --json` prints.
    """
    spectra, cosines = [], []
    for label, found in measured.items():
        shares = [(float(axis), share) for axis, share in enumerate(found["spectrum"], 1) if share >= 1e-6]
        spectra.append(Line(label, shares))
        cosines.append(Line(label, [(math.log2(float(lag)), cosine) for lag, cosine in found["cosine"].items()]))
    return (
        standalone(line_chart("Spectrum of h", "principal axis", "share of the variance", spectra, log_y=True)),
        standalone(line_chart("h over time", "log₂ of the distance in tokens", "cosine of two h", cosines, dots=True)),
    )


if __name__ == "__main__":
    (DOCS / "img/loss.svg").write_text(picture(), encoding="utf-8")
    (DOCS / "img/record.svg").write_text(record(), encoding="utf-8")
    files = sorted((DOCS / "results/jepa" / LATENTS).glob("latents-*-h.json"))
    arms = {file.stem.removeprefix("latents-").removesuffix("-h"): json.loads(file.read_text()) for file in files}
    for name, drawn in zip(("spectrum", "cosine"), latent_pictures(arms), strict=True):
        (DOCS / f"img/latent-{name}.svg").write_text(drawn, encoding="utf-8")
