"""The Mamba-2 mixer between its two projections (Dao & Gu 2024, arXiv 2405.21060)."""
