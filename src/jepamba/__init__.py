"""jepamba: tiny text language models as LeWorldModels on a Mamba-2 backbone, judged by bits per byte."""

import os

# Read when PyTorch is imported. By default a thread that waits for the others is busy for up to a millisecond. Where
# another process wants its core, a step then takes several times as long (docs/results/cpu-speed-2026-11-29.md).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
