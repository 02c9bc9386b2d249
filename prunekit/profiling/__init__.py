"""Building latency tables by measurement."""

from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.differences import differences
from prunekit.profiling.grid import grid
from prunekit.profiling.harvest import harvest
from prunekit.profiling.request import HarvestPlan, ProfileRequest
from prunekit.profiling.transferring import transfer

__all__ = [
    "HarvestPlan",
    "ProfileRequest",
    "differences",
    "grid",
    "harvest",
    "sample_plans",
    "transfer",
]
