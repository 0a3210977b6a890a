"""The atoms of a rearrange step, from what is said of them one by one, and NumPy's meaning of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Atom:
    """A part of an axis of x in memory, and the axis of y that it becomes a part of. ``size`` -1: what the others
    leave; ``start``, ``count`` and ``stride``: the slice that is taken."""

    axis: int
    target: int
    size: int = -1
    start: int = 0
    count: int = -1
    stride: int = 1


def fields(atoms: list[Atom], order: list[int], **join: int) -> dict[str, Any]:
    """The payload; ``order``: the places of the atoms in y, outermost first."""
    columns = {
        name: [getattr(a, name) for a in atoms]
        for name in ("axis", "size", "start", "count", "stride")
    }
    target = [atoms[i].target for i in order]
    return {"atoms": len(atoms), **columns, "order": order, "target": target, **join}


def rearranged(x: np.ndarray, atoms: list[Atom], order: list[int]) -> np.ndarray:
    """A box of four axes to the box of four axes that the step makes of it."""
    sizes: list[int] = []
    for axis in range(4):
        mine = [a.size for a in atoms if a.axis == axis]
        rest = x.shape[axis] // int(np.prod([s for s in mine if s > 0]))
        sizes += [rest if s < 0 else s for s in mine]
    y = x.reshape(sizes)
    for i, a in enumerate(atoms):
        start = a.start + (sizes[i] if a.start < 0 else 0)
        stop = start + a.count * a.stride if a.count > 0 else sizes[i] + 1 + a.count
        y = y[(slice(None),) * i + (slice(start, min(stop, sizes[i]), a.stride),)]
    y = y.transpose(order)
    shape = [1, 1, 1, 1]
    for size, i in zip(y.shape, order, strict=True):
        shape[atoms[i].target] *= size
    return np.ascontiguousarray(y).reshape(shape)
