"""Building latency tables by measurement."""

from prunekit.profiling.choosing import sample_plans
from prunekit.profiling.differences import differences
from prunekit.profiling.grid import grid
from prunekit.profiling.harvest import harvest
from prunekit.profiling.measuring import HarvestPlan
from prunekit.profiling.transferring import transfer

__all__ = ["HarvestPlan", "differences", "grid", "harvest", "sample_plans", "transfer"]
