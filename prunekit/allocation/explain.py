"""What a plan does to every channel group: for a person who asks why it looks as it does."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.allocation.costs import CostModel, LatencyCost, total
from prunekit.core.graph import ChannelGraph
from prunekit.core.plan import ChannelPlan, check_same
from prunekit.core.scores import Scores
from prunekit.latency import LatencyTable


@dataclass(frozen=True)
class GroupChange:
    """One group before and after.

    ``saliency`` is the share of the group's scores that is kept, None where nothing is scored.
    ``saved`` is what the group saves in the plan as it is (milliseconds with a latency table): what
    the network would cost more with this group whole again and all others as planned. Groups that
    share a layer save more together than these numbers add up to.
    """

    before: int
    after: int
    saliency: float | None
    saved: float
    at_minimum: bool


def explain(
    graph: ChannelGraph,
    plan: ChannelPlan,
    costs: LatencyTable | CostModel,
    scores: Scores | None = None,
    granularity: int | None = None,
) -> dict[str, GroupChange]:
    """Every prunable group of ``plan``, in the network's order.

    The least width of a group is at ``granularity`` (default: the table's, else 1).
    """
    check_same(plan.fingerprint, graph.fingerprint)
    table = costs if isinstance(costs, LatencyTable) else getattr(costs, "table", None)
    model = LatencyCost(costs) if isinstance(costs, LatencyTable) else costs
    step = granularity or (table.granularity if table is not None else 1)
    widths = plan.widths
    now = total(graph, widths, model)
    changes = {}
    for group in graph.groups:
        if not group.prunable:
            continue
        after, saved = widths[group.id], 0.0
        if after < group.size:
            saved = total(graph, {**widths, group.id: group.size}, model) - now
        changes[group.id] = GroupChange(
            before=group.size,
            after=after,
            saliency=_kept(scores, group.id, plan),
            saved=saved,
            at_minimum=after <= group.widths(step)[0],
        )
    return changes


def _kept(scores: Scores | None, group: str, plan: ChannelPlan) -> float | None:
    if scores is None or group not in scores.by_group:
        return None
    values = scores.by_group[group]
    whole = float(values.sum())
    return float(values[list(plan.keep[group])].sum()) / whole if whole > 0 else None
