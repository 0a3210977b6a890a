"""Features of a model by module name: outputs seen on the way through, the model unchanged."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from qkernels.modules.calling import Call
from qkernels.modules.eval_mode import eval_mode
from qkernels.modules.watching import watching


@contextmanager
def tap(model: nn.Module, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
    """Inside the block, every call of `model` leaves the outputs of the named modules in the dictionary.

    Names are those of `model.named_modules()`, such as "layer2.0". Outputs carry gradients; of a module called
    more than once the last one counts. Hooks go on at the start and off at the end, whatever happens between.
    Raises ValueError for an unknown name, with the nearest ones; for a module that was not called, or whose output is
    no tensor, when the block ends without another error.
    """
    features: dict[str, Tensor] = {}
    model = model.module if isinstance(model, DistributedDataParallel) else model
    modules = {name: _named(model, name) for name in names}

    def keep(name: str, call: Call, output: Tensor) -> None:
        features[name] = output

    with watching(modules, after=keep):
        yield features
    for name in names:
        found = features.get(name)
        if not isinstance(found, Tensor):
            what = "was not called" if found is None else f"gave a {type(found).__name__}"
            raise ValueError(f"module {name!r} of {type(model).__name__} {what}: tap another one")


def feature_shapes(
    model: nn.Module, names: Sequence[str], image_shape: tuple[int, int, int]
) -> list[torch.Size]:
    """Shapes of the named modules' outputs, without the batch, for images [C, H, W]; the model keeps its mode."""
    weight = next(model.parameters(), torch.empty(0))
    with torch.no_grad(), eval_mode(model), tap(model, names) as features:
        model(torch.zeros(1, *image_shape, device=weight.device, dtype=weight.dtype))
    return [features[name].shape[1:] for name in names]


def pooled(feature: Tensor) -> Tensor:
    """[N, C, ...] -> [N, C], the mean over everything behind the channels."""
    return feature.flatten(2).mean(2) if feature.ndim > 2 else feature


def _named(model: nn.Module, name: str) -> nn.Module:
    modules = dict(model.named_modules())
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3, cutoff=0.0)
        raise ValueError(
            f"{type(model).__name__} has no module {name!r}; the nearest: {', '.join(near)}"
        )
    return modules[name]
