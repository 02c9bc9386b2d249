"""Repair after slimming: a pruned network that works before it is trained."""

from prunekit.pruning.repair.layers import RepairedLayer
from prunekit.pruning.repair.repairing import Repaired, RepairMethod, repair

__all__ = ["RepairMethod", "Repaired", "RepairedLayer", "repair"]
