"""Training: `train` a run into a folder, `resume` it exactly."""

from jepamba.train.trainer import resolve, resume, train

__all__ = ["resolve", "resume", "train"]
