"""Building latency tables by measurement."""

from prunekit.profiling.harvest import harvest, sample_plans
from prunekit.profiling.measuring import HarvestPlan
from prunekit.profiling.transferring import transfer

__all__ = ["HarvestPlan", "harvest", "sample_plans", "transfer"]
