"""Training: `train` a run into a folder, `resume` it exactly."""

from jepamba.train.run_folder import resolve, resume, train

__all__ = ["resolve", "resume", "train"]
