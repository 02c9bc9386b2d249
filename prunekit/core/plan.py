"""The channel plan: which channels of every group are kept, and what that means for each module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, PlainSerializer, PlainValidator

from prunekit.core.graph import ChannelGraph, Member
from prunekit.core.role import Role
from prunekit.core.scores import PRESENT, Scores
from prunekit.support.errors import FileError, UsageError
from prunekit.support.files import load_json, save_json

PLAN_VERSION = 1


@dataclass(frozen=True)
class Scaled:
    """Output positions of a module, none of them removed, whose values are multiplied."""

    rows: tuple[int, ...]
    factor: float


def _further(text: str) -> Role:
    role = Role.parse(text)
    if role.side:
        raise ValueError(f"{text!r} is an axis of outputs or inputs, which stand beside the others")
    return role


_FurtherRole = Annotated[Role, PlainValidator(_further), PlainSerializer(str, return_type=str)]
"""Of a tensor's further axis or a number, as files have it: by its text."""


@dataclass(frozen=True)
class Cut:
    """Positions removed from a module's output and input axes, ascending; empty leaves it whole.

    ``others`` holds what is removed from further axes of its own tensors (``tensor.axis``, such
    as ``gamma.0``) and from numbers it keeps (``#attribute``, such as ``#num_heads``).
    """

    out: tuple[int, ...] = ()
    in_: tuple[int, ...] = ()
    others: dict[_FurtherRole, tuple[int, ...]] = field(default_factory=dict)
    scaled: tuple[Scaled, ...] = ()

    def of(self, role: Role) -> tuple[int, ...]:
        """What is removed where a member with this role lies."""
        if role.side:
            return self.in_ if role.side == "in" else self.out
        return self.others.get(role, ())


@dataclass
class _Losses:
    """What one module loses to all groups that have channels in it."""

    out: set[int] = field(default_factory=set)
    in_: set[int] = field(default_factory=set)
    others: dict[Role, set[int]] = field(default_factory=dict)
    scaled: list[Scaled] = field(default_factory=list)

    def add(self, member: Member, kept: Sequence[int], gone: Sequence[int]) -> None:
        """Channels that a group keeps and loses where ``member`` says."""
        if member.role.scaled:
            rows = tuple(sorted(member.index[kept].ravel().tolist()))
            self.scaled.append(Scaled(rows, math.sqrt(len(kept) / len(member.index))))
            return
        positions = member.index[gone].ravel().tolist()
        for side in member.role.sides:
            (self.out if side == "out" else self.in_).update(positions)
        if not member.role.side:
            self.others.setdefault(member.role, set()).update(positions)

    def cut(self) -> Cut:
        """All of it, in ascending order."""
        others = {role: _sorted(self.others[role]) for role in sorted(self.others, key=str)}
        return Cut(_sorted(self.out), _sorted(self.in_), others, tuple(self.scaled))


@dataclass(frozen=True)
class Base:
    """The dense model a plan applies to: how to build it, and which weights lie beside the plan.

    ``reparameterized`` says that blocks with branches are folded in it.
    """

    spec: str
    arguments: dict[str, int] = field(default_factory=dict)
    weights_sha256: str = ""
    input_shapes: tuple[tuple[int, ...], ...] = ()
    inputs: Annotated[str, Field(exclude_if=lambda text: not text)] = ""
    """The same with names, types and ranges; empty of files that know shapes only."""
    versions: dict[str, str] = field(default_factory=dict)
    reparameterized: bool = False


def check_same(plan: str, model: str, what: str = "graph", whose: str = "plan") -> None:
    """Raise UsageError where the fingerprint of a plan is not that of a model."""
    if plan != model:
        raise UsageError(
            f"the {whose} is for another model (fingerprint {plan}, this {what} has {model})"
        )


@dataclass(frozen=True)
class ChannelPlan:
    """Kept channels per group, with the cut of every module spelled out.

    The cuts make a plan complete without the graph: slimming, masking and loading need only the
    plan and the dense model, which the fingerprint identifies.
    """

    fingerprint: str
    keep: dict[str, tuple[int, ...]]
    cuts: dict[str, Cut]
    sizes: dict[str, int]
    predicted: dict[str, float] = field(default_factory=dict)
    base: Base | None = None
    removed: tuple[str, ...] = ()
    """Residual blocks that are gone as a whole; the groups inside of them keep nothing."""

    @property
    def widths(self) -> dict[str, int]:
        """Kept channels per group."""
        return {group: len(kept) for group, kept in self.keep.items()}

    @property
    def is_dense(self) -> bool:
        """True when nothing is removed."""
        return all(len(kept) == self.sizes[group] for group, kept in self.keep.items())

    @classmethod
    def from_keep(cls, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> ChannelPlan:
        """From kept channel indices; groups not named stay whole.

        Where all groups inside of a removable block keep nothing, the block goes.
        """
        for name in keep:
            graph.group(name)
        keep = {name: _indices(name, kept) for name, kept in keep.items()}
        empty = {name for name, kept in keep.items() if not kept}
        removed = {
            block: groups for block, groups in graph.droppable.items() if empty.issuperset(groups)
        }
        gone_with_it = {group for groups in removed.values() for group in groups}
        chosen: dict[str, tuple[int, ...]] = {}
        losses: dict[str, _Losses] = {}
        for group in graph.groups:
            if group.id in gone_with_it:
                chosen[group.id] = ()
                continue
            kept = sorted({*keep.get(group.id, range(group.size))})
            if not kept or kept[0] < 0 or kept[-1] >= group.size:
                raise UsageError(
                    f"group {group.id!r} has channels 0 to {group.size - 1}; "
                    "a plan must keep at least one of them and no others, or none of all groups "
                    "in a removable block"
                )
            if len(kept) < group.size and not group.prunable:
                raise UsageError(f"group {group.id!r} cannot be pruned: {group.reason}")
            chosen[group.id] = tuple(kept)
            gone = sorted({*range(group.size)} - {*kept})
            for member in group.members if gone else ():
                losses.setdefault(member.module, _Losses()).add(member, kept, gone)
        cuts = {module: losses[module].cut() for module in sorted(losses)}
        sizes = {group.id: group.size for group in graph.groups}
        return cls(graph.fingerprint, chosen, cuts, sizes, removed=tuple(removed))

    @classmethod
    def from_widths(
        cls,
        graph: ChannelGraph,
        widths: Mapping[str, int],
        scores: Scores | None = None,
        locked: Mapping[str, Sequence[int]] | None = None,
    ) -> ChannelPlan:
        """Keep the ``widths[g]`` best channels of each group (the first ones without scores).

        ``locked`` channels rank above all others of their group.
        """
        keep: dict[str, Sequence[int]] = {}
        for name, width in widths.items():
            group = graph.group(name)
            inside = any(name in groups for groups in graph.droppable.values())
            if not isinstance(width, int | np.integer) or isinstance(width, bool):
                raise UsageError(f"width {width!r} of group {name!r} must be a whole number")
            if not 1 - inside <= width <= group.size:
                raise UsageError(
                    f"width {width} of group {name!r} is not in {1 - inside}..{group.size}"
                )
            ranked = (
                scores.ranking(name)
                if scores is not None and name in scores.by_group
                else np.arange(group.size)
            )
            first = (locked or {}).get(name, ())
            rest = ranked[~np.isin(ranked, first)] if len(first) else ranked
            keep[name] = [*first, *rest.tolist()][:width]
        return cls.from_keep(graph, keep)

    @classmethod
    def random(
        cls, graph: ChannelGraph, keep: float, seed: int = 0, granularity: int = 1
    ) -> ChannelPlan:
        """Random widths around the fraction ``keep`` of each prunable group, random channels."""
        if not 0 < keep <= 1:
            raise UsageError(f"`keep` must be in (0, 1], not {keep}")
        rng = np.random.default_rng(seed)
        chosen: dict[str, Sequence[int]] = {}
        for group in graph.groups:
            if not group.prunable:
                continue
            allowed = np.array(group.widths(granularity))
            wanted = group.size * min(1.0, keep * rng.uniform(0.6, 1.4))
            width = int(allowed[np.argmin(np.abs(allowed - wanted))])
            chosen[group.id] = rng.permutation(group.size)[:width].tolist()
        return cls.from_keep(graph, chosen)

    @classmethod
    def dense(cls, graph: ChannelGraph) -> ChannelPlan:
        """The plan that keeps everything."""
        return cls.from_keep(graph, {})

    def then(self, further: ChannelPlan) -> ChannelPlan:
        """The one plan of the dense network that does what this does, and then ``further``.

        ``further`` is of the network that this plan leaves. Raises UsageError where it is not.
        """
        return composed(self, further)

    def save(self, path: str | Path) -> None:
        """Write ``plan.json``."""
        save_json(path, self, "plan", PLAN_VERSION)

    @classmethod
    def load(cls, path: str | Path) -> ChannelPlan:
        """Read ``plan.json``; a damaged or edited file is named in the error."""
        plan = load_json(path, cls, "plan", PLAN_VERSION)
        for group, kept in plan.keep.items():
            size = plan.sizes.get(group, 0)
            if not kept and plan.removed:
                continue
            if not kept or min(kept) < 0 or max(kept) >= size or len(set(kept)) != len(kept):
                raise FileError(f"{path}: group {group!r} keeps channels it does not have")
        for module, cut in plan.cuts.items():
            rows = (part.rows for part in cut.scaled)
            if not all(_ascending(p) for p in (cut.out, cut.in_, *cut.others.values(), *rows)):
                raise FileError(
                    f"{path}: the cut of {module!r} is not a list of ascending positions from 0"
                )
        return plan


def _indices(group: str, given: Any) -> list[int]:
    """Channel numbers from any sequence of them, a tensor's too."""
    try:
        values = np.asarray(given.tolist() if hasattr(given, "tolist") else [*given])
    except (TypeError, ValueError):
        values = np.asarray(None)
    if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
        hint = "; of a mask take mask.nonzero()[:, 0]" if values.dtype.kind == "b" else ""
        raise UsageError(f"group {group!r} must keep a list of channel numbers{hint}")
    return [int(value) for value in values]


def _sorted(positions: set[int]) -> tuple[int, ...]:
    return tuple(sorted(positions))


def _ascending(positions: tuple[int, ...]) -> bool:
    return all(low < high for low, high in pairwise((-1, *positions)))


def composed(first: ChannelPlan, second: ChannelPlan) -> ChannelPlan:
    """See :meth:`ChannelPlan.then`."""
    left = {group: width for group, width in first.widths.items() if width}
    if left != second.sizes:
        strange = next(iter(sorted(left.items() ^ second.sizes.items())))[0]
        raise UsageError(
            f"the second plan is not of the network that the first one leaves: group {strange!r} "
            f"has {second.sizes.get(strange, 'no')} channels in it, not {left.get(strange, 'any')}"
        )
    keep = {
        group: tuple(kept[i] for i in second.keep[group]) if kept else ()
        for group, kept in first.keep.items()
    }
    modules = sorted(first.cuts.keys() | second.cuts.keys())
    cuts = {m: _composed_cut(first.cuts.get(m, Cut()), second.cuts.get(m, Cut())) for m in modules}
    removed = (*first.removed, *second.removed)
    return ChannelPlan(first.fingerprint, keep, cuts, first.sizes, removed=removed)


def _composed_cut(first: Cut, second: Cut) -> Cut:
    others = {
        role: _lifted_positions(first.of(role), second.of(role))
        for role in sorted({*first.others, *second.others}, key=str)
    }
    out = _lifted_positions(first.out, second.out)
    scaled = [
        *first.scaled,
        *(replace(s, rows=_all_lifted(first.out, s.rows)) for s in second.scaled),
    ]
    rest = (replace(s, rows=tuple(r for r in s.rows if r not in {*out})) for s in scaled)
    return Cut(out, _lifted_positions(first.in_, second.in_), others, tuple(rest))


def _lifted_positions(gone: tuple[int, ...], further: tuple[int, ...]) -> tuple[int, ...]:
    """Positions ``gone`` from an axis, and ``further`` ones of what that left."""
    return tuple(sorted({*gone, *_all_lifted(gone, further)}))


def _all_lifted(gone: tuple[int, ...], positions: tuple[int, ...]) -> tuple[int, ...]:
    """Where positions of an axis were before ``gone`` ones went."""
    before = np.asarray(gone, dtype=np.int64) - np.arange(len(gone))
    shifts = np.searchsorted(before, np.asarray(positions, dtype=np.int64), side="right")
    return tuple((np.asarray(positions, dtype=np.int64) + shifts).tolist())


def narrowed(graph: ChannelGraph, plan: ChannelPlan) -> ChannelGraph:
    """The groups of the network that ``plan`` leaves, in its own channel numbers; no layers."""
    groups = []
    for group in graph.groups:
        rows = np.asarray(plan.keep[group.id], dtype=np.int64)
        if not len(rows):
            continue
        members = []
        for member in group.members:
            cut = plan.cuts.get(member.module, Cut())
            gone = np.asarray(cut.of(member.role), dtype=np.int64)
            index = member.index[rows]
            members.append(replace(member, index=index - np.searchsorted(gone, index)))
        groups.append(replace(group, size=len(rows), members=tuple(members)))
    return ChannelGraph(tuple(groups), (), plan.fingerprint, graph.input_shapes)


def lifted(scores: Scores, plan: ChannelPlan) -> Scores:
    """Scores of the network that ``plan`` leaves, in the dense network's channels.

    Channels that it lacks score zero, and less than any that it has.
    """
    dense = {}
    for group, present in scores.by_group.items():
        values = np.zeros(plan.sizes[group])
        values[list(plan.keep[group])] = present + PRESENT
        dense[group] = values
    return replace(scores, by_group=dense)


def geometric_budgets(start: float, end: float, steps: int) -> list[float]:
    """HALP's exponential budget schedule: exp(t/T ln end + (1 - t/T) ln start) for t = 1..T.

    Examples:
        >>> [round(budget, 3) for budget in geometric_budgets(1.0, 0.5, 3)]
        [0.794, 0.63, 0.5]
    """
    low, high = math.log(end), math.log(start)
    return [math.exp(low * t / steps + high * (1 - t / steps)) for t in range(1, steps + 1)]
