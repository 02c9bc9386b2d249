"""Channel identities: every position on an axis of a module is a node; what goes together is one.

A node is a position of a :data:`Slot`. Joined nodes can only be removed together; a frozen one
stays, for the reason given.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from prunekit.core.role import Role

Slot = tuple[str, Role]
"""A module, by name, and where in it."""

FIXED = 0
"""The node of all positions that belong to no channel; what is joined to it is frozen."""
CONSTANT = "it is combined with values that stay as they are"


@dataclass(frozen=True)
class Alike:
    """Atoms, sets of joined nodes, that touch the same slots equally often.

    ``positions`` of each slot are (atoms, times), ascending in each row.
    """

    positions: dict[Slot, NDArray[np.int64]]
    frozen: str
    """Why they must stay; empty: they may go."""

    def __len__(self) -> int:
        return len(next(iter(self.positions.values())))


class Nodes:
    """Union-find over nodes, on whole arrays of them."""

    def __init__(self) -> None:
        self._parent = np.zeros(1, dtype=np.int64)
        self._first: dict[Slot, tuple[int, int]] = {}
        self._reasons: dict[int, str] = {}

    def of(self, slot: Slot, size: int | None = None) -> Tensor:
        """The nodes of ``slot``'s positions, made on first use if ``size`` is given; (size,)."""
        if slot not in self._first:
            if size is None:
                raise KeyError(slot)
            start = len(self._parent)
            self._first[slot] = start, size
            self._parent = np.concatenate([self._parent, np.arange(start, start + size)])
        start, known = self._first[slot]
        if size not in (None, known):
            raise ValueError(f"{slot[0]} ({slot[1]}) has {known} positions, not {size}")
        return torch.arange(start, start + known)

    def modules(self) -> set[str]:
        """The modules that have nodes."""
        return {module for module, _ in self._first}

    def of_size(self, size: int) -> Tensor:
        """The nodes of all slots with so many positions."""
        starts = [start for start, length in self._first.values() if length == size]
        return torch.tensor([start + i for start in starts for i in range(size)], dtype=torch.int64)

    def everything(self) -> Tensor:
        """All nodes."""
        return torch.arange(len(self._parent))

    def roots(self, ids: Tensor) -> Tensor:
        """Each node's representative; nodes are joined when theirs is the same."""
        parents = self._parent[ids.numpy()]
        while True:
            above = self._parent[parents]
            if (above == parents).all():
                break
            parents = above
        self._parent[ids.numpy()] = parents
        return torch.from_numpy(np.asarray(parents))

    def join(self, one: Tensor, other: Tensor) -> None:
        """Join nodes position by position; the shapes broadcast."""
        shape = np.broadcast_shapes(one.shape, other.shape)
        one, other = one.expand(shape), other.expand(shape)
        pairs = torch.stack([self.roots(one).flatten(), self.roots(other).flatten()], dim=1)
        pairs = torch.unique(pairs[pairs[:, 0] != pairs[:, 1]], dim=0)
        for a, b in pairs.tolist():
            low, high = sorted((self._root(a), self._root(b)))
            if low == high:
                continue
            if low == FIXED:
                self._reasons.setdefault(high, CONSTANT)
                continue
            self._parent[high] = low
            if high in self._reasons:
                self._reasons.setdefault(low, self._reasons.pop(high))

    def _root(self, node: int) -> int:
        parent = self._parent
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = int(parent[node])
        return node

    def freeze(self, ids: Tensor, reason: str) -> None:
        """Nodes that must stay; the first reason counts."""
        for root in torch.unique(self.roots(ids)).tolist():
            if root != FIXED:
                self._reasons.setdefault(root, reason)

    def where(self, ids: Tensor) -> dict[Slot, list[int]]:
        """All positions that are joined to these nodes, by slot."""
        wanted = set(self.roots(ids.flatten()).tolist())
        positions: dict[Slot, list[int]] = {}
        for slot, position, root in self._positions():
            if root in wanted:
                positions.setdefault(slot, []).append(position)
        return positions

    def touched(self, ids: Tensor) -> set[Slot]:
        """The slots that have positions joined to these nodes."""
        roots = self.roots(self.everything()).numpy()
        joined = np.flatnonzero(np.isin(roots, self.roots(ids.flatten()).numpy()))
        slots, starts = [*self._first], [start for start, _ in self._first.values()]
        numbers = np.searchsorted(starts, joined[joined > 0], side="right") - 1
        return {slots[number] for number in np.unique(numbers)}

    def alike(self) -> list[Alike]:
        """All atoms that some module writes, in the order of their first positions."""
        slots, sizes = [*self._first], [size for _, size in self._first.values()]
        ids = np.arange(1, len(self._parent))
        starts = np.repeat([start for start, _ in self._first.values()], sizes)
        roots = self.roots(torch.from_numpy(ids)).numpy()
        order = np.argsort(roots, kind="stable")
        roots, positions = roots[order], (ids - starts)[order]
        touched = np.repeat(np.arange(len(slots)), sizes)[order]
        first = np.flatnonzero(np.diff(roots, prepend=-1))
        ends = np.append(first, len(roots))[1:].tolist()
        atoms: dict[tuple[bytes, str], list[int]] = {}
        for begin, end, root in zip(first.tolist(), ends, roots[first].tolist(), strict=True):
            signature = touched[begin:end].tobytes()
            atoms.setdefault((signature, self._reasons.get(root, "")), []).append(begin)
        alike = []
        for (signature, reason), begins in atoms.items():
            numbers = np.frombuffer(signature, dtype=touched.dtype)
            own = [slots[number] for number in np.unique(numbers)]
            if not any(role.is_output for _, role in own):
                continue
            rows = positions[np.add.outer(begins, np.arange(len(numbers)))]
            by_slot = {
                slot: rows[:, numbers == n] for slot, n in zip(own, np.unique(numbers), strict=True)
            }
            alike.append(Alike(by_slot, reason))
        return alike

    def _positions(self) -> Iterator[tuple[Slot, int, int]]:
        for slot, (start, size) in self._first.items():
            roots = self.roots(torch.arange(start, start + size)).tolist()
            for position, root in enumerate(roots):
                yield slot, position, root
