"""Which layers int8 hurts, what each wins, and the mix of int8 and float that meets a floor or a budget."""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from qkernels.measuring.timing import time_in_turns
from qkernels.modules.calling import Call
from qkernels.modules.copying import copied
from qkernels.modules.eval_mode import answering
from qkernels.modules.swap import ModuleSwap, inherit_from
from qkernels.modules.watching import watching
from qkernels.quantization.calibration import Calibration, rereadable, run_batch
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.prepare import prepare_
from qkernels.reports import hang
from qkernels.utils.renamed import explains_old_arguments

Metric = Callable[[nn.Module], float]  # larger is better, for example top-1 on validation images


@dataclass(frozen=True)
class Sensitivity:
    """One layer as int8, all others in float.

    Attributes:
        score: the metric of that model.
        float_seconds, int8_seconds: median times of the layer alone, on the shape that it reads in a call on
            `example_inputs`; None without them.
    """

    name: str
    score: float
    float_seconds: float | None = None
    int8_seconds: float | None = None

    @property
    def saved(self) -> float:
        """Seconds that int8 saves; negative where it is slower."""
        return (self.float_seconds or 0.0) - (self.int8_seconds or 0.0)


@dataclass
class Mixed:
    """The report of `mix`.

    Attributes:
        config: makes the same choice again with `quantize`.
        score: metric of the model.
        seconds: predicted time of one call on `example_inputs`, with a budget.
        met: whether the floor or the budget is met; if not, this is the best there is.
        layers: the scan, most sensitive first.
        kept_float: names of the layers left in float by choice.
    """

    config: QuantConfig
    score: float
    seconds: float | None
    met: bool
    layers: list[Sensitivity]
    kept_float: list[str]

    def __str__(self) -> str:
        rows = [
            f"{layer.name:32} {'float' if layer.name in self.kept_float else 'int8':6} "
            f"score {layer.score:.4g}, saves {layer.saved * 1e6:.1f} us"
            for layer in self.layers
        ]
        head = f"{len(self.kept_float)} of {len(self.layers)} layers in float"
        return "\n".join([f"{head}, score {self.score:.4g}", *rows])


@explains_old_arguments
def scan(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
    *,
    metric: Metric | None = None,
    example_inputs: Tensor | None = None,
    layers: Iterable[str] | None = None,
) -> list[Sensitivity]:
    """Quantize one layer at a time and score the model; most sensitive first.

    Args:
        model: as for `quantize`.
        config: as for `quantize`.
        calibration: as for `quantize`.
        metric: of a model, larger is better. None: SQNR in dB of the model's output against the float model's, over
            the calibration data, batch by batch.
        example_inputs: what the model is called with; with it each layer is also timed, in float and in int8.
        layers: names to scan; None for all that `quantize` converts.

    Raises:
        ValueError: as `quantize`; for an unknown layer, with the nearest known ones.
    """
    return _scan(*_prepared(model, config, calibration, metric), example_inputs, layers)


@explains_old_arguments
def mix(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None = None,
    calibration: Calibration | None = None,
    *,
    metric: Metric | None = None,
    floor: float | None = None,
    budget: float | None = None,
    example_inputs: Tensor | None = None,
) -> nn.Module:
    """Choose int8 or float for each layer.

    With a `floor`, all layers become int8 and the most sensitive go back to float, one by one, until the metric
    reaches it. With a `budget`, all stay float and the layers that save most time for the least loss become int8
    until the predicted time (of the float model, less what the layers save) is within it.

    Args:
        model: as for `quantize`.
        config: as for `quantize`.
        calibration: as for `quantize`.
        metric: as for `scan`.
        floor: least metric.
        budget: most seconds of one call on `example_inputs`.
        example_inputs: what the model is called with; needed by a budget.

    Returns:
        The model of int8 and float layers, batch norms folded, in eval mode, with `Mixed` as its report. Where the
        floor or the budget cannot be met it is the best found, with `met` False and a warning.

    Raises:
        ValueError: unless exactly one of floor and budget is given; a budget without `example_inputs`.
    """
    if (floor is None) == (budget is None):
        raise ValueError(f"give either floor or budget (floor={floor}, budget={budget})")
    if budget is not None and example_inputs is None:
        raise ValueError("a budget needs example_inputs, to time the layers on")
    mixture, metric = _prepared(model, config, calibration, metric)
    layers = _scan(mixture, metric, example_inputs, None)
    if floor is not None:
        return _reach_floor(mixture, metric, layers, floor)
    assert budget is not None and example_inputs is not None
    return _keep_budget(mixture, metric, layers, budget, example_inputs)


class _Mixture:
    """The folded float model with each layer switched to its int8 form or back."""

    def __init__(
        self, model: nn.Module, config: QuantConfig, calibration: Calibration | None
    ) -> None:
        self.config = config
        ready = prepare_(copied(model)[0], config, calibration)
        self._swap = ModuleSwap(ready.model)
        self.float = {name: ready.model.get_submodule(name) for name in ready.plan.layers}
        self.int8 = {name: ready.int8_layer(name) for name in self.float}
        self._used = dict(self.float)
        for name, layer in self.int8.items():
            inherit_from(layer, self.float[name], own=("weight", "bias"))

    @property
    def model(self) -> nn.Module:
        """The model as it was used last."""
        return self._swap.model

    def use(self, int8: Collection[str]) -> nn.Module:
        """The model with these layers in int8 and the others in float."""
        for name, used in self._used.items():
            wanted = self.int8[name] if name in int8 else self.float[name]
            if wanted is not used:
                self._swap.exchange(used, wanted)
                self._used[name] = wanted
        return self._swap.finish()


def _prepared(
    model: nn.Module,
    config: QuantConfig | Mapping[str, Any] | str | None,
    calibration: Calibration | None,
    metric: Metric | None,
) -> tuple[_Mixture, Metric]:
    if metric is None and (calibration is None or callable(calibration)):
        raise ValueError(
            "without a metric the scan needs calibration batches to compare outputs on"
        )
    if calibration is not None:
        calibration = rereadable(calibration)
    mixture = _Mixture(model, QuantConfig.of(config), calibration)
    return mixture, metric or (lambda candidate: output_sqnr(model, candidate, calibration))


@torch.inference_mode()
def output_sqnr(model: nn.Module, other: nn.Module, data: Any) -> float:
    """10 log10 of signal over noise of `other`'s outputs against `model`'s, over all batches; inf when equal."""
    signal = noise = 0.0
    outputs: list[Tensor] = []
    both = watching({"": model, "other": other}, after=lambda name, call, y: outputs.append(y))
    with both, answering(model), answering(other):
        for batch in [data] if isinstance(data, Tensor | Mapping) else data:
            run_batch(model, batch)
            run_batch(other, batch)
            expected, got = (y.double() for y in outputs)
            signal += expected.square().sum().item()
            noise += (expected - got).square().sum().item()
            outputs.clear()
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal else -math.inf


def _scan(
    mixture: _Mixture,
    metric: Metric,
    example_inputs: Tensor | None,
    layers: Iterable[str] | None,
) -> list[Sensitivity]:
    names = list(mixture.float) if layers is None else list(layers)
    for name in names:
        if name not in mixture.float:
            near = difflib.get_close_matches(name, mixture.float, n=3, cutoff=0.4)
            known = ", ".join(near or mixture.float)
            raise ValueError(f"no layer {name!r} to quantize; the nearest: {known}")
    shapes = {} if example_inputs is None else _input_shapes(mixture, example_inputs)
    results = []
    for name in names:
        score = metric(mixture.use([name]))
        results.append(Sensitivity(name, score, *_layer_seconds(mixture, name, shapes.get(name))))
    mixture.use([])
    return sorted(results, key=lambda layer: layer.score)


def _input_shapes(mixture: _Mixture, example_inputs: Tensor) -> dict[str, torch.Size]:
    shapes: dict[str, torch.Size] = {}

    def keep(name: str, call: Call) -> None:
        shapes[name] = call.first.shape

    model = mixture.use([])
    with watching(mixture.float, keep), answering(model):
        run_batch(model, example_inputs)
    return shapes


def _layer_seconds(
    mixture: _Mixture, name: str, shape: torch.Size | None
) -> tuple[float, float] | tuple[None, None]:
    if shape is None:
        return None, None
    x = torch.randn(shape, dtype=torch.float32)
    with torch.inference_mode():
        times = time_in_turns(
            {"float": lambda: mixture.float[name](x), "int8": lambda: mixture.int8[name](x)},
            seconds=0.03,
            rounds=3,
        )
    return times["float"].median, times["int8"].median


def _reach_floor(
    mixture: _Mixture, metric: Metric, layers: list[Sensitivity], floor: float
) -> nn.Module:
    names, best = [layer.name for layer in layers], (-math.inf, 0)
    for kept in range(len(names) + 1):
        score = metric(mixture.use(names[kept:]))
        best = max(best, (score, -kept))  # of equal scores the one with fewer float layers
        if score >= floor:
            break
    score, kept = best[0], -best[1]
    if score < floor:
        warnings.warn(
            f"the floor {floor:.4g} cannot be reached: the best mix has {score:.4g} and is kept",
            stacklevel=4,
        )
    return _mixed(mixture, names[kept:], layers, score, None, score >= floor)


def _keep_budget(
    mixture: _Mixture,
    metric: Metric,
    layers: list[Sensitivity],
    budget: float,
    example_inputs: Tensor,
) -> nn.Module:
    model = mixture.use([])
    with torch.inference_mode():
        seconds = time_in_turns({"": lambda: model(example_inputs)}, seconds=0.1, rounds=3)[
            ""
        ].median
    ideal = metric(model)
    worst = min(layer.score for layer in layers)
    ideal = ideal if math.isfinite(ideal) else max(layer.score for layer in layers)

    def price(layer: Sensitivity) -> float:
        """Loss per second saved; a metric of lesser resolution still sorts by time."""
        return (max(ideal - layer.score, 0.0) + 1e-3 * (ideal - worst) + 1e-9) / layer.saved

    chosen: list[str] = []
    for layer in sorted((x for x in layers if x.saved > 0), key=price):
        if seconds <= budget:
            break
        chosen.append(layer.name)
        seconds -= layer.saved
    if seconds > budget:
        warnings.warn(
            f"the budget of {budget * 1e3:.4g} ms cannot be met: with all layers that int8 makes "
            f"faster it is {seconds * 1e3:.4g} ms, and that mix is kept",
            stacklevel=4,
        )
    score = metric(mixture.use(chosen))
    return _mixed(mixture, chosen, layers, score, seconds, seconds <= budget)


def _mixed(
    mixture: _Mixture,
    int8: Collection[str],
    layers: list[Sensitivity],
    score: float,
    seconds: float | None,
    met: bool,
) -> nn.Module:
    kept = [name for name in mixture.float if name not in int8]
    config = replace(mixture.config, exclude=(*mixture.config.exclude, *kept))
    return hang(mixture.use(int8), Mixed(config, score, seconds, met, layers, kept))
