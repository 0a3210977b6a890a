"""Puts the steps of one program together, node by node."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from qkernels import ops
from qkernels.graph import nodes, tables
from qkernels.graph.formats import Format
from qkernels.graph.places import (
    AXES,
    Atom,
    Groups,
    Place,
    Tangled,
    box_of,
    divided,
    groups_by_axis,
    merged,
    rank_of,
)  # fmt: skip
from qkernels.program.format import Step, Value

IMAGE = (0, 2, 3, 1)  # axes of [N, C, H, W] in memory
_INPUTS = {torch.float32: "float32", torch.int64: "int64", torch.bool: "int64"}


_CLAMPED = {"conv2d", "linear", "affine", "binary"}  # kinds whose last step is a clamp


class LeftToTorch(ValueError):
    """A step that no program takes; the message says why."""


def why_no_input(node: fx.Node) -> str:
    """Why a value of torch's, or of the caller's, cannot be read by a program; empty where it can."""
    x = nodes.value(node)
    if node.op == "get_attr" or x is None or not 2 <= x.dim() <= 4:
        return "what it reads is no tensor of two to four dimensions with a batch"
    if x.dtype not in _INPUTS or (x.dim() == 4 and x.dtype != torch.float32):
        return f"it reads {x.dtype}"
    if x.dtype == torch.bool and node.op != "placeholder":
        return "it reads truth values of torch's"
    if nodes.with_batch_of(node.graph, x) is None:
        return "what it reads has another batch than the model's input"
    if not nodes.is_fixed(x.shape[1 if x.dim() == 4 else -1]):
        return "the number of channels of what it reads is free"
    return ""


class Builder:
    """The values and steps of a program that stands for ``run``, nodes of ``graph`` in order.

    ``outputs`` are those that others read, ``row_of`` the rows of the table. A step's module asks where its operands
    are, in the order in memory that its kernel needs (`image`, `rows`, `compact`), and says with `write` what it
    writes.
    """

    def __init__(
        self,
        graph: fx.GraphModule,
        run: Sequence[fx.Node],
        outputs: Sequence[fx.Node],
        row_of: Callable[[fx.Node], Any],
    ) -> None:
        self.graph, self.run, self.outputs, self.row_of = graph, run, outputs, row_of
        self.values: list[Value] = []
        self.formats: list[Format] = []
        self.steps: list[Step] = []
        self.inputs: list[fx.Node] = []
        self.results: dict[fx.Node, int] = {}
        self._places: dict[fx.Node, Place] = {}
        self._arrays: dict[int, tuple[Any, Any]] = {}
        self._unpacked: dict[int, Tensor] = {}
        self.known: dict[Any, Place] = {}  # operands in another form, by what they are
        self.name = ""
        self.tables: dict[fx.Node, Tensor] = {}  # of integers: words.py
        self.largest: dict[fx.Node, float] = {}  # of integers that are computed: steps/counting.py

    # ---- operands

    def place(self, node: Any) -> Place:
        """The place of a node's tensor; one from outside of the run becomes an input of the program."""
        if not isinstance(node, fx.Node):
            raise LeftToTorch("a number takes the place of a tensor")
        if node not in self._places:
            if node.op == "call_function" and nodes.is_integer(node) and self.row_of(node):
                before = self.name
                self.lower(node, self.row_of(node))  # no program hands integers to another
                self.name = before
            elif (tensor := self.constant(node)) is not None:
                self._places[node] = self._of_model(node, tensor)
            else:
                self._places[node] = self._input(node)
        return self._places[node]

    def constant(self, node: Any) -> Tensor | None:
        """The tensor of the model that a node is, without the batch it may be repeated for; None for any other."""
        node = nodes.unrepeated(node)
        if not isinstance(node, fx.Node):
            return None
        if isinstance(number := nodes.filled_with(node), int | float):
            x = nodes.value(node)
            assert x is not None
            return torch.full([1] * x.dim(), number).to(x.dtype)
        return nodes.tensor_of(self.graph, node) if node.op == "get_attr" else None

    def _input(self, node: fx.Node) -> Place:
        if why := why_no_input(node):
            raise LeftToTorch(why)
        x = nodes.value(node)
        assert x is not None
        if self.inputs and not nodes.same_size(nodes.value(self.inputs[0]).shape[0], x.shape[0]):  # type: ignore[union-attr]
            raise LeftToTorch("what it reads has another batch than the rest of its program")
        sizes = nodes.sizes(x)
        asked = node.meta.get("sizes", x.shape)  # an input of the model has to have these
        order = IMAGE if x.dim() == 4 else range(x.dim())
        atoms = [
            Atom(axis, sizes[i], i > 0 and asked[i] is not None and nodes.is_fixed(asked[i]))
            for axis, i in zip(AXES[x.dim()], order, strict=True)
        ]
        fixed = {f"fixed_{'nhw'[a.axis]}": a.size for a in atoms if a.axis in (1, 2) and a.fixed}
        value = self._new(atoms, x.dim(), None, dtype=_INPUTS[x.dtype], callers=True, **fixed)
        self.inputs.append(node)
        where = {i: at for at, i in enumerate(order)}
        return _plain(Place(value, tuple(atoms), tuple((where[i],) for i in range(x.dim()))))

    def _of_model(self, node: fx.Node, tensor: Tensor) -> Place:
        """A tensor of the model that is repeated for the batch, in memory as an input of its sizes would be."""
        x = nodes.value(node)
        assert x is not None
        if (
            x.dim() not in AXES
            or nodes.with_batch_of(node.graph, x) is None
            or not all(map(nodes.is_fixed, x.shape[1:]))
        ):
            raise LeftToTorch("it reads a tensor of the model without a batch")
        sizes, order = nodes.sizes(x), IMAGE if x.dim() == 4 else tuple(range(x.dim()))
        atoms = tuple(
            Atom(axis, sizes[i], i > 0) for axis, i in zip(AXES[x.dim()], order, strict=True)
        )
        y = self.write(
            Place(-1, atoms, tuple((order.index(i),) for i in range(x.dim()))), x.dim(), None
        )
        made = self.add("constant", self.beside("constant"), self._with_batch_of(x), y.value)
        made.fields |= {"nhwc"[a.axis]: a.size for a in atoms[1:]}
        made.constants["data"] = self.array(tensor.float().expand(1, *sizes[1:]).permute(order)[0])
        return _plain(y)

    def _with_batch_of(self, x: Tensor) -> int:
        """The value of an input of the program."""
        if not self.inputs:
            self.place(nodes.with_batch_of(self.graph.graph, x))
        return self.read(self.place(self.inputs[0]))

    def _new(
        self,
        atoms: Sequence[Atom],
        rank: int,
        format: Format,
        *,
        dtype: str | None = None,
        **fields: Any,
    ) -> int:
        sizes = [math.prod(a.taken for a in atoms if a.axis == axis) for axis in range(4)]
        channels = sizes[3] if all(a.taken_is_fixed for a in atoms if a.axis == 3) else 0
        dtype = dtype or ("int8" if format else "float32")
        size = math.prod(sizes) * {"int8": 1, "float32": 4, "int64": 8}[dtype]
        self.values.append(Value(channels, rank, dtype, size, **fields))
        self.formats.append(format)
        return len(self.values) - 1

    # ---- the order in memory that a kernel needs

    def arranged(self, place: Place, groups: Groups, rank: int) -> Place:
        """The tensor in a box of ``rank`` with these axes, by nothing, another name for the same memory, or a copy."""
        _check_batch(place, groups)
        if self._is_box(place, groups, rank):
            return place
        key = (place.value, place.atoms, groups, rank)
        if key not in self.known:
            self.known[key] = self._rearranged(place, groups, rank)
        new = self.known[key]
        return _plain(
            Place(new.value, new.atoms, box_of(place, groups, new.value).axes), merge=True
        )

    def _rearranged(self, place: Place, groups: Groups, rank: int) -> Place:
        new = box_of(place, groups, -1)
        for axis in range(4):
            if sum(not a.fixed for a in _plain(new, merge=True).atoms if a.axis == axis) > 1:
                raise LeftToTorch("two sizes that the input decides would share an axis")
        self._nhwc(place.value)
        value = self._new(
            new.atoms, rank, self.formats[place.value], dtype=self.values[place.value].dtype
        )
        self._add_rearrange(place, groups, value)
        return Place(value, new.atoms, new.axes)

    def _add_rearrange(self, place: Place, groups: Groups, y: int, **join: Any) -> None:
        if len(place.atoms) > 8:
            raise LeftToTorch("its views have more than eight parts")
        order = [a for group in groups for a in group]
        target = [axis for axis, group in enumerate(groups) for _ in group]
        gone = [a for a in range(len(place.atoms)) if a not in order]  # of which one is taken
        order, target = order + gone, target + [3 for _ in gone]
        atoms = place.atoms
        fields = {
            "axis": [a.axis for a in atoms], "size": [a.size if a.fixed else -1 for a in atoms],
            "start": [a.start for a in atoms], "stride": [a.stride for a in atoms],
            "count": [-1 if a.count is None else a.count for a in atoms], "order": order, "target": target,
        }  # fmt: skip
        self.add(
            "rearrange",
            self.beside("rearrange"),
            place.value,
            y,
            atoms=len(atoms),
            **{k: _eight(v) for k, v in fields.items()},
            **join,
        )

    def rank(self, place: Place) -> int:
        """The rank of the box that a place is in."""
        return self.values[place.value].rank

    def _is_box(self, place: Place, groups: Groups, rank: int) -> bool:
        """Whether the box is of these axes and this rank, and the tensor all of it in this order."""
        order = [a for group in groups for a in group]
        whole = place.is_whole and order == list(range(len(place.atoms)))
        return whole and groups_by_axis(place) == groups and self.rank(place) == rank

    def image(self, place: Place) -> Place:
        """[N, C, H, W] as an image."""
        if len(place.axes) != 4:
            raise LeftToTorch("it reads no image")
        n, c, h, w = place.axes
        return self.arranged(place, (n, h, w, c), 4)

    def rows(self, place: Place) -> Place:
        """A box whose c is the last axis; where the others lie does not matter."""
        place = self.compact(place)
        last = place.axes[-1]
        rest = [a for a in range(len(place.atoms)) if a not in last]
        groups = _by_axis(place, rest, last)
        same = groups == groups_by_axis(place)
        return self.arranged(place, groups, self.rank(place) if same else rank_of(groups))

    def compact(self, place: Place) -> Place:
        """A box that holds the elements of the tensor only, each once."""
        if place.is_whole:
            return place
        kept = [a for a in range(len(place.atoms)) if place.axis_of(a) >= 0]
        groups = _by_axis(
            place,
            [a for a in kept if place.atoms[a].axis < 3],
            [a for a in kept if place.atoms[a].axis == 3],
        )
        return self.arranged(place, groups, self.rank(place))

    def in_order(self, place: Place) -> Place:
        """A box whose atoms lie in the tensor's own order."""
        n, *middle, last = place.axes
        h, w = (middle[:1] or [()])[0], tuple(a for axis in middle[1:] for a in axis)
        groups: Groups = (n, h, w, last)
        return self.arranged(place, groups, rank_of(groups))

    def like(self, place: Place, other: Place) -> Place:
        """A tensor in a box in whose memory axes lie as in that of ``other``, of the same shape or repeated to it."""
        parts, homes = self.parts(place, other)
        return self.arranged(parts, _grouped(parts, homes, other), self.rank(other))

    def parts(self, place: Place, other: Place) -> tuple[Place, dict[int, int]]:
        """The tensor with an axis for every atom of ``other``, and which axis is whose."""
        axes = [()] * (len(other.axes) - len(place.axes)) + list(place.axes)
        padded = Place(place.value, place.atoms, tuple(axes))
        shape: list[int] = []
        fixed: list[bool] = []
        homes: dict[int, int] = {}
        for axis, atoms in zip(padded.axes, other.axes, strict=True):
            if not axis:
                shape, fixed = [*shape, 1], [*fixed, True]
                homes |= dict.fromkeys(atoms, len(shape) - 1)
                continue
            for a in atoms:
                homes[a] = len(shape)
                shape.append(other.atoms[a].taken)
                fixed.append(other.atoms[a].taken_is_fixed)
        return padded.reshaped(shape, fixed), homes

    def by_runs(self, place: Place, flags: Sequence[bool]) -> Place:
        """A box along each of whose axes all atoms have the same flag."""
        if all(len({flags[a] for a in group}) < 2 for group in groups_by_axis(place)):
            return place
        runs: list[list[int]] = [[0]]
        for a in range(1, len(place.atoms)):
            if flags[a] == flags[a - 1] and (a > 1 or place.atoms[a].axis == 0):
                runs[-1].append(a)
            else:
                runs.append([a])
        groups = divided(runs)
        return self.arranged(place, groups, rank_of(groups))

    def split_at(self, place: Place, dim: int) -> Place:
        """A box one of whose axes is that axis of the tensor alone, in the order that it has."""
        place = self.compact(place)
        own = place.axes[dim]
        if not own or own in groups_by_axis(place):
            return place
        before = [a for a in range(len(place.atoms)) if a < own[0]]
        after = [a for a in range(len(place.atoms)) if a > own[-1]]
        batch = [a for a in before if place.atoms[a].axis == 0]
        runs = [batch, [a for a in before if a not in batch], list(own), after]
        groups = divided([run for run in runs if run])
        return self.arranged(place, groups, rank_of(groups))

    def add_part(self, place: Place, out: Place, dim: int, join: dict[str, int]) -> None:
        """Write a tensor into a part of ``out`` along an axis of the tensor."""
        size, own = place.shape[dim], out.axes[dim]
        atoms = tuple(Atom(a.axis, size, True) if i in own else a for i, a in enumerate(out.atoms))
        parts, homes = self.parts(place, Place(out.value, atoms, out.axes))
        self._nhwc(parts.value)
        self._add_rearrange(parts, _grouped(parts, homes, out), out.value, **join)

    def add_constant(self, tensor: Tensor, out: Place, x: Place, join: dict[str, int]) -> None:
        """Write a tensor of the model, the same for each of the batch, into a part of ``out``; ``x`` has its batch."""
        data = self.boxed(tensor, out)
        format = self.formats[out.value]
        if format:
            data = tables.quantized(data, format)
        h, w, c = data.shape
        step = self.add("constant", "", self.read(x), out.value, h=h, w=w, c=c, **join)
        step.constants["data"] = self.array(data)

    def boxed(self, tensor: Tensor, other: Place) -> Tensor:
        """A tensor of the model as [h, w, c] of the box of ``other``, with sizes of 1 where it repeats."""
        tensor = tensor.reshape([1] * (len(other.axes) - tensor.dim()) + list(tensor.shape))
        shape: list[int] = []
        homes: dict[int, int] = {}
        for size, atoms in zip(tensor.shape, other.axes, strict=True):
            taken = [other.atoms[a].taken for a in atoms]
            whole = size == math.prod(taken)
            if not whole and not atoms:
                raise LeftToTorch("its constant is larger than what it meets")
            if not whole and size != 1 and len(atoms) > 1:
                raise LeftToTorch("its constant has a part of an axis of several parts")
            homes |= {a: len(shape) + i for i, a in enumerate(atoms)}
            shape += taken if whole else [size] * len(atoms)
        parts, groups = tensor.reshape(shape), groups_by_axis(other)
        if any(parts.shape[homes[a]] != 1 for a in groups[0]):
            raise LeftToTorch("its constant differs within the batch")
        box = [math.prod(parts.shape[homes[a]] for a in group) for group in groups]
        for size, group in zip(box, groups, strict=True):
            if len(group) > 1 and size not in (1, math.prod(other.atoms[a].taken for a in group)):
                raise LeftToTorch("its constant repeats along a part of an axis")
        order = [homes[a] for group in groups for a in group]
        return parts.permute(order).reshape(box[1:]).contiguous()

    def _nhwc(self, value: int) -> None:
        """An input whose pixels lie in order, which only convolutions do without."""
        of = self.values[value]
        of.nhwc_only |= of.rank == 4 and any(self._places[n].value == value for n in self.inputs)

    def read(self, place: Place, *, anywhere: bool = False) -> int:
        """The value of a place that a step reads; ``anywhere``: whatever the strides of an input are."""
        if not anywhere:
            self._nhwc(place.value)
        return place.value

    def as_format(self, place: Place, format: Format) -> Place:
        """The tensor as int8 of that scale, or as float32."""
        given = self.formats[place.value]
        if given == format:
            return place
        key = (place.value, format)
        if key not in self.known:
            self.known[key] = self._converted(place.value, format)
        return Place(self.known[key].value, place.atoms, place.axes)

    def _converted(self, value: int, format: Format) -> Place:
        given, of = self.formats[value], self.values[value]
        self._nhwc(value)
        count = of.size if given else of.size // 4
        self.values.append(
            Value(
                of.channels,
                of.rank,
                "int8" if format else "float32",
                count if format else 4 * count,
            )
        )
        self.formats.append(format)
        new = len(self.values) - 1
        if given and format:
            table = tables.table_of(lambda x: x, given, format)
            self.add("lookup", self.beside("lookup"), value, new).constants["table"] = self.array(
                table
            )
        else:
            self.add(
                "unary",
                self.beside("unary"),
                value,
                new,
                function="identity",
                **self.input_fields(value),
                **output_fields(format),
            )
        return Place(new, (), ())

    # ---- results

    def put(self, node: fx.Node, place: Place) -> None:
        """Say where a node's tensor is."""
        self._places[node] = _plain(place, merge=True)

    def write(self, like: Place, rank: int, format: Format) -> Place:
        """A new value in a box of those atoms."""
        return Place(self._new(like.atoms, rank, format), like.atoms, like.axes)

    def write_like(self, x: Place, format: Format) -> Place:
        """A new value in a box as that of ``x``."""
        return self.write(x, self.rank(x), format)

    def finish(self, node: fx.Node) -> int:
        """The value of the caller's that an output of the run is, float32 in the tensor's own order."""
        x = nodes.value(node)
        assert x is not None
        place = self.as_format(self.place(node), None)
        if not 2 <= x.dim() <= 4:
            raise LeftToTorch("its result has fewer than two or more than four dimensions")
        if place.repeats(nodes.sizes(x)):
            raise LeftToTorch("its result repeats values")
        if x.dim() == 4:
            return self._planes(place)
        n, *middle, c = place.axes
        groups: Groups = (n, *[*middle, (), ()][:2], c)  # type: ignore[assignment]
        of = self.values[place.value]
        if self._is_box(place, groups, x.dim()) and not of.callers:
            of.callers = True
            return place.value
        return self._copied_out(place, groups, groups, x.dim())

    def _planes(self, place: Place) -> int:
        n, c, h, w = place.axes
        if place.is_whole and [*n, *h, *w, *c] == list(range(len(place.atoms))):
            place = self.image(place)
            if self._is_of_a_conv_alone(place.value):
                self.values[place.value].callers = self.values[place.value].planar = True
                return place.value
            value = self._new(place.atoms, 4, None, callers=True, planar=True)
            self.add("planar", self.beside("planar"), self.read(place), value)
            return value
        return self._copied_out(place, (n, h, w, c), (n, c, h, w), 4, planar=True)

    def _is_of_a_conv_alone(self, value: int) -> bool:
        """Whether a convolution writes it, which can write planes, and no step or result reads it as an image."""
        writers = [step.kind for step in self.steps if step.y == value]
        is_read = any(value in step.reads for step in self.steps)
        return writers == ["conv2d"] and not is_read and value not in self.results.values()

    def _copied_out(
        self, place: Place, groups: Groups, memory: Groups, rank: int, **fields: Any
    ) -> int:
        """A value of the caller's of axes ``groups``, which lie in the order ``memory``."""
        _check_batch(place, groups)
        value = self._new(box_of(place, groups, -1).atoms, rank, None, callers=True, **fields)
        self._nhwc(place.value)
        self._add_rearrange(place, memory, value)
        return value

    # ---- steps

    def add(self, kind: str, name: str, x: int, y: int, *others: int, **fields: Any) -> Step:
        """One step; ``name`` "" is that of the node."""
        self.steps.append(Step(kind, name or self.name, x, y, others, fields))
        return self.steps[-1]

    def beside(self, kind: str) -> str:
        """The name of a step that only brings an operand into another form."""
        return f"{self.name} [{kind}]"

    def array(self, tensor: Tensor) -> Any:
        """One array a tensor, so that a weight used twice is held once."""
        array = tensor.detach().contiguous().numpy()
        return self._arrays.setdefault(id(tensor), (array, tensor))[0]

    def unpacked(self, weight: Tensor, size: list[int]) -> Tensor:
        """The codes of a packed weight: one tensor, however often it is asked for."""
        return self._unpacked.setdefault(weight.data_ptr(), ops.unpack_weight(weight, size))

    def lower(self, node: fx.Node, step: Any) -> None:
        """One node by its row of the table."""
        self.name = str(node.meta.get("layer") or nodes.where(node))
        try:
            step.lower(self, node)
        except Tangled as error:
            raise LeftToTorch(f"its operands are {error}") from error

    def compute(self, kind: str, x: Place, y: Place, **fields: Any) -> Step:
        """A step from one value to another, each float32 or int8 of a scale."""
        given, made = self.input_fields(x.value), output_fields(self.formats[y.value])
        return self.add(kind, "", self.read(x), y.value, **fields, **given, **made)

    def clamp_where_written(self, node: fx.Node, lo: float, hi: float, format: Format) -> bool:
        """Whether the step that writes what ``node`` clamps, and nobody else reads, clamps it and writes ``format``."""
        place = self.place(node.args[0])
        value, writers = self.values[place.value], [s for s in self.steps if s.y == place.value]
        if self.formats[place.value] or len(writers) != 1 or writers[0].kind not in _CLAMPED:
            return False
        views = [n for n, at in self._places.items() if at.value == place.value]
        fields = writers[0].fields
        bounds = fields.get("lo", -math.inf), fields.get("hi", math.inf)
        if any(len(n.users) != 1 for n in views) or bounds != (-math.inf, math.inf):
            return False
        if format:
            value.dtype, value.size = "int8", value.size // 4
        self.formats[place.value] = format
        fields |= {"lo": lo, "hi": hi} | output_fields(format)
        self.put(node, place)
        return True

    def input_fields(self, value: int, name: str = "x") -> dict[str, Any]:
        """Scale and zero point of an int8 operand."""
        format = self.formats[value]
        return {} if format is None else {f"{name}_scale": format[0], f"{name}_zero": format[1]}


def output_fields(format: Format) -> dict[str, Any]:
    """Scale and zero point of an int8 output; the scale is inverted in float32, as the operators do."""
    if format is None:
        return {}
    inverse = torch.tensor(1.0) / torch.tensor(format[0])
    return {"out_inv_scale": float(inverse), "out_zero": format[1]}


def _plain(place: Place, merge: bool = False) -> Place:
    """The axes without atoms of size 1 but for the batch; the batch has an atom always."""
    gone = [i for i, a in enumerate(place.atoms) if i and a.size == 1]
    new = {a: i for i, a in enumerate(j for j in range(len(place.atoms)) if j not in gone)}
    atoms = tuple(a for i, a in enumerate(place.atoms) if i not in gone)
    axes = tuple(tuple(new[a] for a in axis if a in new) for axis in place.axes)
    place = Place(place.value, atoms, axes)
    return merged(place) if merge else place


def _by_axis(place: Place, rest: Iterable[int], last: Sequence[int]) -> Groups:
    """The axes that the box has, but for c, which is ``last``: what is left of c becomes w, then h."""
    groups: list[list[int]] = [[], [], []]
    for a in rest:
        groups[min(place.atoms[a].axis, 2)].append(a)
    return (*map(tuple, groups), tuple(last))  # type: ignore[return-value]


def _grouped(parts: Place, homes: dict[int, int], other: Place) -> Groups:
    """The atoms of ``parts`` by the axes of the box of ``other``, to whose atoms its axes belong."""
    groups = groups_by_axis(other)
    return tuple(tuple(a for i in group for a in parts.axes[homes[i]]) for group in groups)  # type: ignore[return-value]


def _check_batch(place: Place, groups: Groups) -> None:
    """Refuse a box whose first axis is not the batch, times sizes of the model's."""
    first = groups[0]
    begins = first and place.atoms[first[0]].axis == 0
    if not begins or not all(place.atoms[a].taken_is_fixed for a in first[1:]):
        raise LeftToTorch("its batch is not the first axis")


def _eight(values: list[int]) -> list[int]:
    return values + [0] * (8 - len(values))
