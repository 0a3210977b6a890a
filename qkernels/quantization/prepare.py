"""The way from a model to the float model that is converted: plain, folded, every range found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from qkernels import reports
from qkernels.modules.calling import Call, example_call
from qkernels.modules.eval_mode import answering
from qkernels.modules.swap import ModuleSwap
from qkernels.nn import fix_mean_order_
from qkernels.nn.module import QuantModule
from qkernels.nn.registry import spec_of
from qkernels.plain import PlainForm, plain_form
from qkernels.quantization.calibration import (
    Calibration,
    calibrate,
    example_of,
    run_call,
)
from qkernels.quantization.config import QuantConfig
from qkernels.quantization.fold import Folds, fold_batch_norm_
from qkernels.quantization.observers import Observer, make_observers
from qkernels.quantization.plan import Plan, make_plan, unwanted, why_impossible

QParams = tuple[float, int]
_NOTED_CUT = 4.0  # a range this many times narrower than its data gets a note


@dataclass
class Prepared:
    """A float model ready to be converted layer by layer.

    Attributes:
        model: in eval mode, its hidden layers made plain, its batch norms folded.
        plan: which layers are converted, and how.
        qparams: scale and zero point of the static layers' inputs.
        call: an example of the call the model is for; None where nobody gave one.
        answer: what `model` answers to `call`.
        folded: (layer, batch norm) names.
        notes: sentences for the report.
    """

    model: nn.Module
    plan: Plan
    qparams: dict[str, QParams]
    call: Call | None
    answer: Any
    folded: list[tuple[str, str]]
    notes: list[str]

    def int8_layer(self, name: str) -> QuantModule:
        """The int8 form of a layer of the plan.

        Raises:
            ValueError: NaN or infinity in its weight; it names the layer.
        """
        layer, settings = self.model.get_submodule(name), self.plan.layers[name]
        spec = spec_of(layer)
        assert spec is not None
        scale, zero_point = self.qparams.get(name, (None, None))
        try:
            return spec.int8_class.from_float(
                layer,
                activation=settings.activation if spec.observed else spec.int8_class.ACTIVATIONS[0],
                weight=spec.int8_class.quantize(
                    layer, per_channel=settings.weight == "per_channel"
                ),
                input_scale=scale,
                input_zero_point=zero_point,
                symmetric=bool(settings.symmetric),
            ).eval()
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error} (exclude it to keep it in float)") from error


def prepare_(
    model: nn.Module,
    config: QuantConfig,
    calibration: Calibration | None,
    example_inputs: Any = None,
) -> Prepared:
    """Make `model` itself ready for conversion, see `quantize` for the arguments and errors."""
    model.eval()
    call = None if example_inputs is None else example_call(example_inputs)
    if calibration is not None:
        example = example_of(model, calibration)
        call, calibration = call or example.call, example.data
    if call is not None:
        with answering(model):
            run_call(model, call)  # what does not fit is said before anything is changed
    model, notes, kinds, refused = _make_plain(model, config)
    plan = make_plan(model, config, kinds=kinds, refused=refused)
    _check_calibration(model, plan, calibration)
    _check_strict(plan, config)
    call_layers_plainly(model, plan.layers)
    folds = Folds()
    if config.fold_batch_norm:
        folds = reports.report(fold_batch_norm_(model, call, only=plan.layers), Folds)
    fix_mean_order_(model)
    with answering(model):
        answer = None if call is None else call.run(model)
    qparams, cuts = _input_qparams(model, plan, calibration)
    _check_strict(plan, config)
    notes += plan.notes + folds.notes + cuts
    return Prepared(model, plan, qparams, call, answer, folds.pairs, notes)


def call_layers_plainly(model: nn.Module, names: Iterable[str]) -> None:
    """Make torch's transformer encoders call their layers instead of reading their weights.

    In eval mode they otherwise hand `linear1.weight` to a fused float kernel, past our layers, and pack padded batches
    into nested tensors that only this kernel takes.
    """
    changed = {name.rpartition(".")[0] for name in names}
    for name, module in model.named_modules():
        below = any(
            parent == name or parent.startswith(f"{name}.".lstrip(".")) for parent in changed
        )
        if below and isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # torch: "not a fused activation"
        if below and isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False


def _check_calibration(model: nn.Module, plan: Plan, calibration: Calibration | None) -> None:
    needing = [n for n in _static(model, plan) if plan.layers[n].observer != "fixed"]
    if needing and calibration is None:
        raise ValueError(
            f"{len(needing)} layers are static (first: {needing[0]!r}) and need calibration data: "
            'give calibration=..., or activation="dynamic"'
        )
    if calibration is not None and not needing:
        plan.notes.append(
            "no layer takes its range from data: the calibration data was not used, but as an example of a call"
        )


def _check_strict(plan: Plan, config: QuantConfig) -> None:
    left = {name: why for name, why in plan.skipped.items() if name not in plan.excluded}
    if config.strict and left:
        listed = "; ".join(f"{name}: {why}" for name, why in left.items())
        raise ValueError(f"strict: {len(left)} layers would stay float ({listed}); exclude them")


def _static(model: nn.Module, plan: Plan) -> dict[str, QuantConfig]:
    """The layers whose input needs a range."""
    specs = {name: spec_of(model.get_submodule(name)) for name in plan.layers}
    return {
        name: layer
        for name, layer in plan.layers.items()
        if layer.activation == "static" and (spec := specs[name]) is not None and spec.observed
    }


def _input_qparams(
    model: nn.Module, plan: Plan, calibration: Calibration | None
) -> tuple[dict[str, QParams], list[str]]:
    """Scale and zero point of each static layer, and notes; layers never reached move to `plan.skipped`."""
    observers = make_observers(_static(model, plan))
    if observers and calibration is not None:
        calibrate(model, observers, calibration)
    for name, observer in observers.items():
        if observer.count == 0:
            plan.skipped[name] = "the calibration data never reached it"
            del plan.layers[name]
    if not plan.layers:
        raise ValueError("the calibration data reached no layer: does it run the whole model?")
    reached = {name: observer for name, observer in observers.items() if observer.count}
    return {name: o.qparams() for name, o in reached.items()}, _cuts(reached)


def _cuts(observers: Mapping[str, Observer]) -> list[str]:
    """A sentence for every range that leaves most of what was seen outside."""
    return [
        f"{name}: calibration cut its range {cut:.3g} times, from [{o.seen[0]:.3g}, {o.seen[1]:.3g}] to "
        f'[{o.range()[0]:.3g}, {o.range()[1]:.3g}]; observer="minmax", activation="dynamic" or recovery.smooth keep '
        "what lies outside"
        for name, o in observers.items()
        if (cut := o.cut()) > _NOTED_CUT
    ]


def _why_float(form: PlainForm, activation: str) -> str | None:
    """Why a form that is one ordinary layer would stay in float; None where it would not, or is several."""
    if form.module is None or (spec := spec_of(form.module)) is None:
        return None
    return why_impossible(form.module, spec, activation)


def _make_plain(
    model: nn.Module, config: QuantConfig
) -> tuple[nn.Module, list[str], dict[str, str], dict[str, str]]:
    """The model with its hidden products as layers of their own; notes, the former class names, and who refused."""
    names = Plan()
    first: dict[nn.Module, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.names.setdefault(first.setdefault(module, name), []).append(name)
        names.kinds[name] = type(module).__name__
    notes, refused, swap = [], {}, ModuleSwap(model)
    for module, name in first.items():
        form = plain_form(module) if unwanted(names, config, name) is None else None
        if form is None:
            continue
        why = _why_float(form, config.for_layer(names.lineage(name)).activation)
        if form.module is None or why is not None:
            refused[name] = why or form.sentence
            continue
        for key in form.spent_hooks:
            module._forward_pre_hooks.pop(key, None)
        swap.put(module, form.module.train(module.training))
        notes.append(f"{name or 'the model'}: {form.sentence}")
    return swap.finish(), notes + swap.notes, names.kinds, refused
