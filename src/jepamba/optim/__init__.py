"""Muon for matrices, AdamW for all other parameters, and their schedules."""

from jepamba.optim.groups import Groups, Optimizers, group_parameters
from jepamba.optim.muon import Muon
from jepamba.optim.schedule import learning_rate_scale, muon_momentum

__all__ = [
    "Groups",
    "Muon",
    "Optimizers",
    "group_parameters",
    "learning_rate_scale",
    "muon_momentum",
]
