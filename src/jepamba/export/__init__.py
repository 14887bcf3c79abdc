"""Writes artifacts in the formats of other tools."""

from jepamba.export.to_transformers import export_transformers

__all__ = ["export_transformers"]
