"""Importances of torch-pruning by name: those that are no sum over single weights.

Fang et al. 2023, "DepGraph: Towards Any Structural Pruning" (2301.12900), and what each of them names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from qkernels.modules.answers import logits_of
from qkernels.modules.calling import Call
from qkernels.modules.watching import watching
from qkernels.prune.groups import ChannelGraph, ChannelGroup
from qkernels.prune.scores import Labelled, Loss, channel_dim, labelled, mean_gradients
from qkernels.utils.extras import require
from qkernels.utils.progress import progress as progress_bar

CLASSES = {
    "activation": "ActivationImportance",
    "bn_scale": "BNScaleImportance",
    "fpgm": "FPGMImportance",
    "hessian": "GroupHessianImportance",
    "lamp": "LAMPImportance",
    "magnitude": "GroupMagnitudeImportance",
    "random": "RandomImportance",
    "taylor": "GroupTaylorImportance",
}


@dataclass(frozen=True)
class Importance:
    """An importance of torch-pruning, which `prune_channels` takes in place of scores; `importance` makes it."""

    name: str
    batches: Sequence[tuple[Tensor, Any]] = ()
    loss: Loss = cross_entropy
    options: Mapping[str, Any] = field(default_factory=dict)

    def scores(self, graph: ChannelGraph, groups: Sequence[ChannelGroup]) -> list[Tensor]:
        """One value a channel of each group, float32; the gradients of the graph's model are used for it.

        Raises ValueError for a group of which the importance says nothing.
        """
        library = require("torch_pruning", "prune")
        scorer = getattr(library.importance, CLASSES[self.name])(**self.options)
        # The library normalizes over all entries; a head has many, of which one channel is made here.
        normalizer = vars(scorer).pop("normalizer", None)
        scorer.normalizer = None
        with ExitStack() as stack:
            stack.callback(_forget, graph.model)
            if self.name in NEED_DATA:
                _WATCHED[self.name](graph.model, self.batches, self.loss)
            found = []
            for group in groups:
                values = scorer(graph.library_group(group))
                if values is None:
                    raise ValueError(
                        f"the importance {self.name!r} says nothing about {group.name}: leave it out by ignore="
                    )
                values = values[: group.channels].float().cpu()
                found.append(scorer._normalize(values, normalizer) if normalizer else values)
        return found


def importance(
    name: str, batches: Labelled | None = None, loss: Loss = cross_entropy, **options: Any
) -> Importance:
    """An importance of torch-pruning by name, for `prune_channels` in place of scores.

    Args:
        name: "magnitude" (group norm), "lamp" (Lee et al. 2021, 2010.07611), "fpgm" (distance to the other filters, He
            et al. 2019, 1811.00250), "bn_scale" (Liu et al. 2017, 1708.06519), "random"; or, from data, "taylor"
            (Molchanov et al. 2019, 1906.10771), "hessian" (w^2 by the mean squared gradient of single samples: optimal
            brain damage, LeCun et al. 1989), "activation" (the mean |x| of what reads a channel).
        batches: (inputs, labels), for those from data. "hessian" runs every sample by itself.
        loss: the mean over a batch, of (outputs, labels).
        options: of the library's class, such as `p`, `bias`, `group_reduction` ("mean" over the layers of a group by
            default), and `normalizer` ("mean": divided by the mean of the group).

    Raises:
        ValueError: for an unknown name, batches missing or given in vain, an option that the class does not have.
    """
    if name not in CLASSES:
        raise ValueError(f"no importance {name!r}; known: {', '.join(CLASSES)}")
    if (batches is None) == (name in NEED_DATA):
        wanted = "needs batches of (inputs, labels)" if batches is None else "takes no batches"
        raise ValueError(f"the importance {name!r} {wanted}")
    library = require("torch_pruning", "prune")
    try:
        getattr(library.importance, CLASSES[name])(**options)
    except (TypeError, AssertionError) as error:
        raise ValueError(f"the importance {name!r} does not take {options}: {error}") from error
    return Importance(name, [] if batches is None else labelled(batches), loss, options)


def _leave_gradients(
    model: nn.Module, batches: Sequence[tuple[Tensor, Any]], loss: Loss, power: int = 1
) -> None:
    """Leave in `grad` the mean over all samples of the gradient, of single ones to the power."""
    parameters = dict(model.named_parameters())
    for name, mean in mean_gradients(model, parameters, batches, loss, power).items():
        parameters[name].grad = mean


def _mean_squares(model: nn.Module, batches: Sequence[tuple[Tensor, Any]], loss: Loss) -> None:
    """Leave in `grad` the mean of squared gradients of single samples, the diagonal of the empirical Fisher matrix."""
    singles = [(x[i : i + 1], y[i : i + 1]) for x, y in batches for i in range(len(y))]
    _leave_gradients(model, singles, loss, power=2)


def _mean_inputs(model: nn.Module, batches: Sequence[tuple[Tensor, Any]], loss: Loss) -> None:
    """Leave in `_importance` of each layer the mean |x| of its input channels, where the library looks for it."""
    count = sum(len(x) for x, _ in batches)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}

    def watch(name: str, call: Call) -> None:
        layer: Any = layers[name]
        x = call.first.abs().movedim(channel_dim(layer), -1)
        layer._importance += x.flatten(0, -2).mean(0).cpu() * share

    for layer in layers.values():
        vars(layer)["_importance"] = torch.zeros(_inputs(layer))
    with (
        watching(layers, before=watch),
        torch.no_grad(),
        progress_bar("activations", len(batches)) as advance,
    ):
        for inputs, _ in batches:
            share = len(inputs) / count
            logits_of(model, inputs)
            advance()


def _inputs(layer: nn.Module) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels  # type: ignore[return-value]


def _forget(model: nn.Module) -> None:
    """Take off what an importance left on the model."""
    model.zero_grad(set_to_none=True)
    for module in model.modules():
        vars(module).pop("_importance", None)


_WATCHED = {"activation": _mean_inputs, "hessian": _mean_squares, "taylor": _leave_gradients}
NEED_DATA = tuple(_WATCHED)
