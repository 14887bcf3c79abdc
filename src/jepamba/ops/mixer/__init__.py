"""The inside of a Mamba-2 mixer between its two projections."""
