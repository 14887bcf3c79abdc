"""jepamba: tiny text language models as LeWorldModels on a Mamba-2 backbone, judged by bits per byte."""

__version__ = "0.1.0"
