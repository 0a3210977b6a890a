"""The places of a torch value's elements in a value of a program.

A value of a program is a box of four sizes n, h, w, c in memory order. Views of torch (reshape, permute, slices,
chunks) move nothing: they change which parts of the box's axes, its atoms, make up which axis of the tensor, and in
what order. Only a step that needs another order in memory has it made, by one `rearrange`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

# Axes of a box, by the dimensions of a tensor that lies in order.
AXES = {2: (0, 3), 3: (0, 1, 3), 4: (0, 1, 2, 3)}


class Tangled(ValueError):
    """A view that no rearranging of whole atoms gives."""


@dataclass(frozen=True)
class Atom:
    """A part of an axis of a box, of which a slice is taken.

    Attributes:
        axis: of the box; 0 n, 1 h, 2 w, 3 c.
        size: for the example.
        fixed: whether the size is the model's; else it follows from the input.
        start, stride: of the slice.
        count: of the slice; None takes all from ``start``.
    """

    axis: int
    size: int
    fixed: bool
    start: int = 0
    stride: int = 1
    count: int | None = None

    @property
    def taken(self) -> int:
        return self.count if self.count is not None else -(-(self.size - self.start) // self.stride)

    @property
    def is_whole(self) -> bool:
        return self.start == 0 and self.stride == 1 and self.taken == self.size

    @property
    def taken_is_fixed(self) -> bool:
        return self.fixed or self.count is not None


@dataclass(frozen=True)
class Place:
    """A tensor in the box ``value``.

    Attributes:
        atoms: of the whole box in memory order; the first is the batch.
        axes: of the tensor, each the atoms that make it up, outermost first. An axis without atoms has size 1, or
            repeats what it has.
    """

    value: int
    atoms: tuple[Atom, ...]
    axes: tuple[tuple[int, ...], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(math.prod(self.atoms[a].taken for a in axis) for axis in self.axes)

    @property
    def order(self) -> list[int]:
        """The atoms in the tensor's own order."""
        return [a for axis in self.axes for a in axis]

    @property
    def is_whole(self) -> bool:
        """Whether every element of the box is one of the tensor."""
        return all(atom.is_whole for atom in self.atoms)

    def repeats(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of that shape repeats values: an axis of more than one element has no atom."""
        axes = [()] * (len(shape) - len(self.axes)) + list(self.axes)
        return any(not axis and size != 1 for axis, size in zip(axes, shape, strict=True))

    def axis_of(self, atom: int) -> int:
        """The axis of the tensor that an atom is a part of; -1: of none."""
        return next((i for i, axis in enumerate(self.axes) if atom in axis), -1)

    # -- views

    def permuted(self, order: Sequence[int]) -> Place:
        return replace(self, axes=tuple(self.axes[i] for i in order))

    def with_axis(self, at: int) -> Place:
        """The same with one more axis, of size 1."""
        return replace(self, axes=(*self.axes[:at], (), *self.axes[at:]))

    def without_axes(self, gone: Sequence[int]) -> Place:
        """The same without axes of size 1."""
        return replace(self, axes=tuple(a for i, a in enumerate(self.axes) if i not in gone))

    def sliced(self, axis: int, start: int, count: int | None, stride: int = 1) -> Place:
        """Every ``stride``-th from ``start``; ``count`` None: to the end."""
        if len(self.axes[axis]) != 1:
            raise Tangled("a slice of an axis that has several parts")
        at = self.axes[axis][0]
        atom = self.atoms[at]
        if atom.stride != 1 or (atom.count is not None and count is None and stride != 1):
            raise Tangled("a slice of a slice")
        if count is None and atom.count is not None:
            count = atom.count - start
        new = replace(atom, start=atom.start + start, stride=stride, count=count)
        return replace(self, atoms=(*self.atoms[:at], new, *self.atoms[at + 1 :]))

    def selected(self, axis: int, index: int) -> Place:
        """One element of an axis, without the axis."""
        return self.sliced(axis, index, 1).without_axes([axis])

    def reshaped(self, shape: Sequence[int], fixed: Sequence[bool]) -> Place:
        """The same elements in another shape; ``fixed``: of which sizes the model itself is the reason."""
        atoms, todo = list(self.atoms), self.order
        axes: list[tuple[int, ...]] = []
        for size, is_fixed in zip(shape, fixed, strict=True):
            taken: list[int] = []
            left = size
            while left > 1:
                if not todo:
                    raise Tangled("a view of other elements")
                first = todo[0]
                if left % atoms[first].taken == 0:
                    taken.append(todo.pop(0))
                    left //= atoms[first].taken
                    continue
                if atoms[first].taken % left:
                    raise Tangled("a view across axes")
                outer, inner = _split(atoms[first], left, is_fixed or bool(taken))
                atoms[first : first + 1] = [outer, inner]
                todo = [t + (t > first) for t in todo[1:]]
                axes = [tuple(t + (t > first) for t in axis) for axis in axes]
                taken = [t + (t > first) for t in taken]
                taken.append(first)
                todo.insert(0, first + 1)
                left = 1
            if size == 1 and todo and atoms[todo[0]].taken == 1:
                taken.append(todo.pop(0))  # a batch of one is an atom too
            axes.append(tuple(taken))
        for rest in todo:
            if atoms[rest].taken != 1:
                raise Tangled("a view of other elements")
        return Place(self.value, tuple(atoms), tuple(axes))


def _split(atom: Atom, outer: int, outer_is_fixed: bool) -> tuple[Atom, Atom]:
    """An atom as an outer and an inner one, of which one has a size of the model's."""
    inner = atom.taken // outer
    if atom.stride != 1 or atom.start % inner or atom.size % inner:
        raise Tangled("a view of a slice")
    inner_is_fixed = atom.fixed or not outer_is_fixed
    if not atom.is_whole and not inner_is_fixed:
        raise Tangled("a view of a slice")
    count = None if atom.count is None else outer
    first = Atom(
        atom.axis, atom.size // inner, atom.fixed or outer_is_fixed, atom.start // inner, 1, count
    )
    if first.is_whole:
        first = replace(first, count=None)
    return first, Atom(atom.axis, inner, inner_is_fixed)


def merged(place: Place) -> Place:
    """Whole neighbours in memory that are neighbours in one axis of the tensor, and in one of the box, as one atom."""
    atoms, axes = list(place.atoms), [list(axis) for axis in place.axes]
    at = 0
    while at + 1 < len(atoms):
        one, two = atoms[at], atoms[at + 1]
        home = next((axis for axis in axes if at in axis), None)
        together = home is not None and at + 1 in home and home.index(at + 1) == home.index(at) + 1
        if not (together and one.is_whole and two.is_whole and one.axis == two.axis):
            at += 1
            continue
        assert home is not None
        atoms[at : at + 2] = [Atom(one.axis, one.size * two.size, one.fixed and two.fixed)]
        home.remove(at + 1)
        axes = [[a - (a > at) for a in axis] for axis in axes]
    return Place(place.value, tuple(atoms), tuple(map(tuple, axes)))


Groups = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def box_of(place: Place, groups: Groups, value: int) -> Place:
    """The tensor of ``place`` in a box whose axes are these atoms; atoms that are none of the tensor's are gone."""
    old = [a for group in groups for a in group]
    atoms = []
    for axis, group in enumerate(groups):
        for a in group:
            atom = place.atoms[a]
            atoms.append(Atom(axis, atom.taken, atom.taken_is_fixed))
    new = {a: i for i, a in enumerate(old)}
    return Place(value, tuple(atoms), tuple(tuple(new[a] for a in axis) for axis in place.axes))


def groups_by_axis(place: Place) -> Groups:
    """The atoms of the box's own axes."""
    groups: list[list[int]] = [[], [], [], []]
    for i, atom in enumerate(place.atoms):
        groups[atom.axis].append(i)
    return tuple(map(tuple, groups))  # type: ignore[return-value]


def rank_of(groups: Groups) -> int:
    """The least rank of a box with these axes: 4 with w, 3 with h, 2 with neither."""
    return 4 if groups[2] else 3 if groups[1] else 2


def divided(runs: Sequence[Sequence[int]]) -> Groups:
    """Runs of neighbouring atoms, the first of which holds the batch, as the axes of a box: the last is c."""
    if len(runs) > 4:
        raise Tangled("more than four axes")
    n, *middle = runs
    if not middle:
        return tuple(n), (), (), ()
    *between, last = middle
    h, w = [*map(tuple, between), (), ()][:2]
    return tuple(n), h, w, tuple(last)
