"""Training: `train` a run into a folder, `resume` it exactly."""

from jepamba.train.run_folder import read_and_resolve, resolve, resume, train

__all__ = ["read_and_resolve", "resolve", "resume", "train"]
