"""Pruning channels while a network trains: rules that a training loop calls."""

from prunekit.pruning.halp import Halp
from prunekit.pruning.iee import IEE
from prunekit.pruning.iee_schedule import IEESchedule

__all__ = ["IEE", "Halp", "IEESchedule"]
