"""Draw docs/img/loss.svg from a logged run: `.venv/bin/python docs/make_picture.py`.

The run and the figures of the published script are those of docs/results/submission-bpe-400.md.
"""

from __future__ import annotations

from pathlib import Path

from jepamba.report.charts import Line, line_chart, standalone
from jepamba.report.records import read_metrics, series, with_train_bpb

DOCS = Path(__file__).parent
PUBLISHED_SCRIPT = [(200.0, 1.6248), (400.0, 1.4755)]
"""(step, BPB of the held-out text)."""


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


if __name__ == "__main__":
    (DOCS / "img/loss.svg").write_text(picture(), encoding="utf-8")
