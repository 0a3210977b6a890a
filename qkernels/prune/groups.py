"""Channels that can only go together: through residual adds, batch norms, depthwise layers, concatenation, flattening.

From torch-pruning's dependency graph (Fang et al. 2023, "DepGraph: Towards Any Structural Pruning", 2301.12900).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.models.channels import EMBEDDING_WIDTHS, sizes, width_dim
from qkernels.models.cifar_resnet import ZeroPadShortcut
from qkernels.modules.copying import copied
from qkernels.modules.outputs import output_tensors
from qkernels.modules.swap import ModuleSwap
from qkernels.nn import QuantModule
from qkernels.prune.attention import split_attention_
from qkernels.prune.cells import (
    Cells,
    Side,
    components,
    find_cells,
    is_grouped,
    is_transposed,
)
from qkernels.utils.extras import require


@dataclass(frozen=True, eq=False)
class Member:
    """One side of a layer in a group: entry `index[i]` of that side goes with channel `channel[i]` of the group.

    `dim` is the dimension of the layer's weight that the entries lie along; None: no dimension has them all.
    """

    layer: str
    side: Side
    index: Tensor  # int64 [entries]
    channel: Tensor  # int64 [entries], 0 .. the group's channels - 1
    dim: int | None = 0


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """`name` is the first layer that makes these channels; of heads and groups, one channel here is a whole one."""

    name: str
    channels: int
    members: tuple[Member, ...]

    @property
    def width(self) -> int:
        """Outputs of the first layer that go with one channel: the size of a head or group, else 1."""
        first = next((m for m in self.members if m.layer == self.name and m.side == "out"), None)
        return 1 if first is None else max(1, len(first.index) // self.channels)

    @property
    def key(self) -> tuple[object, ...]:
        """What tells the groups of a model apart, in every graph of it."""
        return self.name, self.channels, tuple((m.layer, m.side) for m in self.members)


class ChannelGraph:
    """A copy of `model` in eval mode, which groups of channels it has, and how they are taken out of it.

    Attributes:
        model: the copy; `remove` changes it.
        groups: those that may go, in model order. The channels of the inputs and outputs never do.
        joined_attention: what stood where the copy has `PlainAttention`, by name.
        notes: which layers must stay as they are, and why.

    With `embeddings`, tables (``nn.Embedding``) go too, and parameters that a forward adds to channels or puts by them.
    """

    def __init__(
        self, model: nn.Module, example_inputs: Tensor, *, embeddings: bool = False
    ) -> None:
        self.embeddings = embeddings
        self.model, self.joined_attention = split_attention_(copied(model)[0].eval())
        trained = (*model.named_parameters(), *self.model.named_parameters())
        self._trainable = {name: parameter.requires_grad for name, parameter in trained}
        self.model.requires_grad_(True)
        self.notes: list[str] = []
        self._graph = self._trace(example_inputs)
        self._names: dict[nn.Module | nn.Parameter, str] = {
            **{parameter: name for name, parameter in self.model.named_parameters()},
            **{module: name for name, module in self.model.named_modules()},
        }
        self._known = sizes(self.model)
        names = (*self._known, *(name for name, _ in self.model.named_parameters()))
        self._order = {name: at for at, name in enumerate(names)}
        self._unfit = dict(_unfit(self.model))
        self._cells = find_cells(self.model, example_inputs)
        self.groups = sorted(
            self._whole_cells(list(self._find())), key=lambda g: self._order[g.name]
        )

    def remove(self, dropped: Mapping[ChannelGroup, Tensor]) -> nn.Module:
        """Take the channels (int64 positions in each group) out of `model`; it is of no further use to this graph."""
        gone: dict[tuple[str, Side], list[Tensor]] = defaultdict(list)
        for group, positions in dropped.items():
            for member in group.members:
                chosen = torch.isin(member.channel, positions)
                gone[member.layer, member.side].append(member.index[chosen])
        entries = {key: torch.cat(parts).unique() for key, parts in gone.items()}
        self._narrow_holders(entries)
        for (layer, side), chosen in entries.items():
            part = part_of(self.model, layer)
            if isinstance(part, nn.Parameter):
                self._cut_parameter(layer, part, chosen)
            else:
                self._cut(part, side, chosen.tolist())
        for cells in self._cells:
            first, parts = next(iter(cells.entries.items()))
            if first in entries:
                count = len(entries[first]) // parts.shape[1]
                cells.shrink(self.model.get_submodule(cells.module), count)
        self._join_attention({layer for layer, _ in entries})
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self._trainable[name])
        return self.model

    def _narrow_holders(self, entries: Mapping[tuple[str, Side], Tensor]) -> None:
        """Modules around embeddings that say how wide those are say what will be left."""
        left: dict[tuple[nn.Module, str], int] = {}
        for (layer, side), gone in entries.items():
            part, names = part_of(self.model, layer), layer.split(".")
            if not isinstance(part, nn.Embedding | nn.Parameter):
                continue
            width = self._width(part, side)
            for holder in (
                self.model.get_submodule(".".join(names[:i])) for i in range(len(names))
            ):
                for attribute in EMBEDDING_WIDTHS:
                    if vars(holder).get(attribute) == width:
                        left[holder, attribute] = width - len(gone)
        for (holder, attribute), width in left.items():
            setattr(holder, attribute, width)

    def _cut_parameter(self, name: str, parameter: nn.Parameter, entries: Tensor) -> None:
        """Take entries out of a parameter that a module holds itself."""
        owner, _, attribute = name.rpartition(".")
        dim = width_dim(parameter)
        assert dim is not None
        every = torch.arange(parameter.shape[dim])
        kept = every[~torch.isin(every, entries)].to(parameter.device)
        cut = nn.Parameter(parameter.detach().index_select(dim, kept))
        setattr(self.model.get_submodule(owner), attribute, cut)

    def _join_attention(self, cut: Collection[str]) -> None:
        """Attention of which nothing was cut is torch's again."""
        swap = ModuleSwap(self.model)
        for name, former in self.joined_attention.items():
            if not any(layer.startswith(f"{name}.") for layer in cut):
                swap.exchange(self.model.get_submodule(name), former)
        self.model = swap.finish()

    def library_group(self, group: ChannelGroup) -> Any:
        """The group as torch-pruning's importances take it: layers, entries in order, and the channel of each."""
        library = require("torch_pruning", "prune")
        made = library.dependency.Group()
        for member in group.members:
            module = part_of(self.model, member.layer)
            # In some groups' weights nothing is the entries' own; how transposed ones lie the library does not know.
            if member.dim is None or (is_grouped(module) and is_transposed(module)):
                continue
            pruner, node = self._graph.get_pruner_of_module(module), self._graph.module2node[module]
            cut = pruner.prune_out_channels if member.side == "out" else pruner.prune_in_channels
            order = member.index.argsort()
            made.add_dep(
                library.dependency.Dependency(cut, cut, node, node), member.index[order].tolist()
            )
            made[-1].root_idxs = member.channel[order].tolist()
        return made

    def _cut(self, module: Any, side: Side, entries: list[int]) -> None:
        """Take entries of one side out of a layer."""
        if is_grouped(module) and (side == "in") != is_transposed(module):
            # This side's entries lie along no dimension of the weight: with a whole group, the other side's rows go.
            attribute = "in_channels" if side == "in" else "out_channels"
            setattr(module, attribute, getattr(module, attribute) - len(entries))
            if side == "out" and module.bias is not None:
                kept = [i for i in range(len(module.bias)) if i not in set(entries)]
                module.bias = nn.Parameter(module.bias.detach()[kept])
        elif is_grouped(module) and is_transposed(module):
            kept = [i for i in range(len(module.weight)) if i not in set(entries)]
            module.weight = nn.Parameter(module.weight.detach()[kept])
            module.in_channels -= len(entries)
        else:
            pruner = self._graph.get_pruner_of_module(module)
            cut = pruner.prune_out_channels if side == "out" else pruner.prune_in_channels
            cut(module, entries)

    def _whole_cells(self, groups: list[ChannelGroup]) -> Iterator[ChannelGroup]:
        """The groups with channels joined to what leaves as a whole; cells that reach what stays, stay."""
        groups = groups + [self._heads(cells) for cells in self._cells if self._is_fused(cells)]
        starts = torch.tensor([0, *(group.channels for group in groups)]).cumsum(0).tolist()
        owner: dict[tuple[str, Side], Tensor] = {}
        for start, group in zip(starts, groups, strict=False):
            for member in group.members:
                side = (member.layer, member.side)
                module = part_of(self.model, member.layer)
                nodes = owner.setdefault(side, torch.full((self._width(module, side[1]),), -1))
                nodes[member.index] = start + member.channel
        joined, fixed = [], []
        for cells in self._cells:
            for number in range(len(next(iter(cells.entries.values())))):
                nodes = torch.cat([
                    owner[side][parts[number]] if side in owner else torch.tensor([-1])
                    for side, parts in cells.entries.items()
                ])  # fmt: skip
                known = nodes[nodes >= 0]
                if len(known):
                    joined.append(known)
                if len(known) < len(nodes):
                    fixed += known.tolist()
        root = components(joined, starts[-1])
        stays = torch.isin(root, root[torch.tensor(fixed, dtype=torch.int64)])
        yield from self._joined(groups, starts, root, stays)

    def _joined(
        self, groups: list[ChannelGroup], starts: list[int], root: Tensor, stays: Tensor
    ) -> Iterator[ChannelGroup]:
        """New groups of components of channels; a component spans what it is in."""
        spans: dict[int, tuple[int, ...]] = defaultdict(tuple)
        for at, group in enumerate(groups):
            own = root[starts[at] : starts[at + 1]]
            for component in own[~stays[starts[at] : starts[at + 1]]].unique().tolist():
                spans[component] += (at,)
            if stays[starts[at] : starts[at + 1]].all() and group.channels:
                self.notes.append(
                    f"{group.name} keeps its channels: they are in groups with channels that stay"
                )
        alike: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for component, span in spans.items():
            alike[span].append(component)
        for span, chosen in alike.items():
            place = torch.full((len(root),), -1)
            place[torch.tensor(chosen)] = torch.arange(len(chosen))
            parts: dict[tuple[str, Side], list[tuple[Tensor, Tensor, int | None]]] = defaultdict(
                list
            )
            for at in span:
                of = place[root[starts[at] : starts[at + 1]]]
                for member in groups[at].members:
                    channel = of[member.channel]
                    kept = channel >= 0
                    entry = (member.index[kept], channel[kept], member.dim)
                    parts[member.layer, member.side].append(entry)
            members = tuple(
                Member(*side, torch.cat([p[0] for p in found]), torch.cat([p[1] for p in found]), found[0][2])
                for side, found in parts.items()
            )  # fmt: skip
            first = min((self._order[m.layer], m.layer) for m in members if m.side == "out")
            yield ChannelGroup(first[1], len(chosen), members)

    def _is_fused(self, cells: Cells) -> bool:
        """Whether the library's graph does not see through the attention, and the cells name all there is to cut."""
        return any(side == "in" for _, side in cells.entries) and not is_grouped(
            self.model.get_submodule(cells.module)
        )

    def _heads(self, cells: Cells) -> ChannelGroup:
        members = [
            Member(
                layer, side, parts.flatten(),
                torch.arange(len(parts)).repeat_interleave(parts.shape[1]), int(side == "in"),
            )
            for (layer, side), parts in cells.entries.items()
        ]  # fmt: skip
        made = next(layer for layer, side in cells.entries if side == "out")
        why = f"{made} keeps its channels"
        self.notes = [note for note in self.notes if not note.startswith(why)]
        return ChannelGroup(made, len(next(iter(cells.entries.values()))), tuple(members))

    def _trace(self, example_inputs: Tensor) -> Any:
        """The library's graph, taught how a zero-padded shortcut moves channels."""
        library, kind = require("torch_pruning", "prune"), type(self.model).__name__
        if any(isinstance(module, QuantModule) for module in self.model.modules()):
            raise ValueError(f"{kind} has int8 layers: prune the float model, then quantize it")
        try:
            with torch.enable_grad():
                graph = library.DependencyGraph()
                del graph.REGISTERED_PRUNERS[
                    library.ops.OPTYPE.MHA
                ]  # plain attention is its layers
                graph.build_dependency(
                    self.model,
                    example_inputs=(example_inputs,),
                    customized_pruners={ZeroPadShortcut: _ShortcutPruner()},
                    output_transform=lambda answer: [y for _, y in output_tensors(answer)],
                    verbose=False,
                )
        except Exception as error:  # whatever the model's forward or the library raises
            raise ValueError(f"{kind} cannot be traced to prune it: {error}") from error
        for module, node in graph.module2node.items():
            if isinstance(module, ZeroPadShortcut):
                _shift_indices(node, module)
        return graph

    def _find(self) -> Iterator[ChannelGroup]:
        taken: dict[nn.Module, set[int]] = defaultdict(set)
        for module in self._roots():
            pruner = self._graph.get_pruner_of_module(module)
            free = sorted(set(range(pruner.get_out_channels(module))) - taken[module])
            if not free:
                continue
            items = self._graph.get_pruning_group(module, pruner.prune_out_channels, free)
            for item in items:
                if self._side(item) == "out":
                    taken[item.dep.target.module].update(item.idxs)
            why = self._why_not(items)
            if why is None:
                yield from self._split(items, free)
            elif why:
                self.notes.append(f"{self._names[module]} keeps its channels: {why}")

    def _roots(self) -> list[nn.Module]:
        """Layers that make channels of their own, in model order."""
        return [
            m
            for m in self.model.modules()
            if m in self._graph.module2node
            and isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)
            and not (
                not isinstance(m, nn.Linear) and m.groups == m.out_channels == m.in_channels > 1
            )
        ]

    def _side(self, item: Any) -> Side:
        return "out" if self._graph.is_out_channel_pruning_fn(item.dep.handler) else "in"

    def _why_not(self, items: Any) -> str | None:
        """Why these channels cannot be taken out; None if they can."""
        root, root_entries = items[0].dep.target.module, items[0].idxs
        for item in items:
            node, module = item.dep.target, item.dep.target.module
            if not node.outputs and self._side(item) == "out":
                return ""  # the model returns them: no surprise
            if None in item.root_idxs or (module is root and item.idxs != item.root_idxs):
                return "they are coupled with each other"
            name, kind = self._names.get(module), type(module).__name__
            if name is None:
                if not self._keeps_width(node, len(root_entries)):
                    return f"the forward has their number in a {kind.strip('_')}"
            elif isinstance(module, nn.Embedding | nn.Parameter) and not self.embeddings:
                what = "an embedding" if isinstance(module, nn.Embedding) else "a parameter"
                return f"{name} is {what}, which embeddings=True narrows too"
            elif isinstance(module, nn.Parameter):
                if width_dim(module) is None or name.rpartition(".")[0] in self._unfit:
                    return f"{name} is a parameter without a width of its own"
                if max(item.idxs, default=0) >= self._width(module, "out"):
                    return f"the forward moves them to {name} in a way that is not followed"
            elif name not in self._known:
                return f"{name} is a {kind}"
            elif name in self._unfit:
                return self._unfit[name]
            elif max(item.idxs, default=0) >= self._width(module, self._side(item)):
                return f"the forward moves them to {name} in a way that is not followed"
        return None

    def _keeps_width(self, node: Any, channels: int) -> bool:
        """Whether an operation leaves so many channels as they are, though the forward says a number in it."""
        kind = type(node.module).__name__
        if kind == "_SliceOp":
            shape: Any = getattr(node.grad_fn, "_saved_self_sym_sizes", ())
            of_tokens = len(shape) == 3 and shape[1] != channels  # [N, T, C]
            return node.module.dim in (2, 3) or (of_tokens and node.module.dim == 1)
        if kind == "_ExpandOp":
            return all(isinstance(source.module, nn.Parameter) for source in node.inputs)
        return kind not in _FIXED

    def _width(self, module: Any, side: Side) -> int:
        """How many entries a side of a layer has, or a parameter."""
        if isinstance(module, nn.Parameter):
            return module.shape[width_dim(module) or 0]
        pruner = self._graph.get_pruner_of_module(module)
        count: int = (pruner.get_out_channels if side == "out" else pruner.get_in_channels)(module)
        return count

    def _split(self, items: Any, free: list[int]) -> Iterator[ChannelGroup]:
        """One group for all channels that have the same members: a zero-padded shortcut couples only some."""
        members: dict[tuple[str, Side], dict[int, list[int]]] = {}
        for item in items:
            name = self._names.get(item.dep.target.module)
            if name is not None:
                entries = members.setdefault((name, self._side(item)), defaultdict(list))
                for index, root in zip(item.idxs, item.root_idxs, strict=True):
                    entries[root].append(index)
        alike: dict[tuple[tuple[str, Side], ...], list[int]] = defaultdict(list)
        for channel in free:
            alike[tuple(k for k, entries in members.items() if channel in entries)].append(channel)
        for keys, channels in alike.items():
            found = tuple(
                _member(key, members[key], channels, part_of(self.model, key[0])) for key in keys
            )
            first = min((self._order[m.layer], m.layer) for m in found if m.side == "out")
            yield ChannelGroup(first[1], len(channels), found)


def _unfit(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Layers whose weights are not theirs alone to cut, and why."""
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None and owners.setdefault(id(parameter), name) != name:
                why = f"{name} and {owners[id(parameter)]} share a weight"
                yield from ((name, why), (owners[id(parameter)], why))
        if any(key.endswith("_orig") for key in module._parameters):
            yield name, f"{name} is masked: torch.nn.utils.prune.remove makes its zeros lasting"


_FIXED = ("_SplitOp", "_UnbindOp")


def part_of(model: nn.Module, name: str) -> Any:
    """The module of that name, or the parameter."""
    owner, _, attribute = name.rpartition(".")
    return getattr(model.get_submodule(owner), attribute) if name else model


def _member(
    key: tuple[str, Side],
    entries: Mapping[int, list[int]],
    channels: list[int],
    layer: nn.Module | nn.Parameter,
) -> Member:
    pairs = [(index, at) for at, channel in enumerate(channels) for index in entries[channel]]
    index, channel = torch.tensor(pairs, dtype=torch.int64).T
    return Member(*key, index, channel, _weight_dim(layer, key[1]))


def _weight_dim(layer: nn.Module | nn.Parameter, side: Side) -> int | None:
    """The dimension of the weight that the entries of a side lie along."""
    if isinstance(layer, nn.Parameter):
        return width_dim(layer)
    if isinstance(layer, nn.Embedding):
        return 1
    second = (side == "in") != is_transposed(layer)
    return None if second and is_grouped(layer) else int(second)


class _ShortcutPruner:
    """What torch-pruning does to a `ZeroPadShortcut`, by its outputs, of which those in the middle are its inputs."""

    def prune_out_channels(self, layer: ZeroPadShortcut, entries: list[int]) -> ZeroPadShortcut:
        before, end = layer.before, layer.before + layer.in_channels
        layer.before -= sum(i < before for i in entries)
        layer.in_channels -= sum(before <= i < end for i in entries)
        layer.after -= sum(i >= end for i in entries)
        return layer

    prune_in_channels = prune_out_channels

    def get_out_channels(self, layer: ZeroPadShortcut) -> int:
        return layer.before + layer.in_channels + layer.after

    def get_in_channels(self, layer: ZeroPadShortcut) -> int:
        return layer.in_channels


def _shift_indices(node: Any, shortcut: ZeroPadShortcut) -> None:
    """Channel c of the shortcut's input is channel before + c of its output."""
    before, count = shortcut.before, shortcut.in_channels

    def shifted(by: int, last: int) -> Callable[[list[Any]], list[Any]]:
        return lambda indices: [
            i._replace(idx=i.idx + by) for i in indices if 0 <= i.idx + by < last
        ]

    for source in node.inputs:
        for dependency in source.dependencies:
            if dependency.target is node:
                dependency.index_mapping[1] = shifted(before, before + count)
        for dependency in node.dependencies:
            if dependency.target is source:
                dependency.index_mapping[1] = shifted(-before, count)
