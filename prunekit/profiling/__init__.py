"""Building latency tables by measurement."""

from prunekit.profiling.harvest import HarvestPlan, harvest, sample_plans

__all__ = ["HarvestPlan", "harvest", "sample_plans"]
