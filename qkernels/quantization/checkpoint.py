"""One safetensors file per model: its tensors, and as JSON metadata what is needed to rebuild it.

The metadata key `qkernels` holds

    format_version   int, the version of this layout
    qkernels_version of the writer
    plain            {module name: scheme} of every module that was made of ordinary layers (`qkernels.plain`)
    modules          {module name: scheme} of every int8 layer
    folded           {batch norm name: {"kind", "into"}}, the placeholder that stands there, and "rest", its children
    clamped          {name: channels} of every ClampedReLU that stands where a ReLU6 was; absent in older files
    aliases          {tensor name: name it is stored under} of tensors stored once
    architecture     {"name", "kwargs"} for `qkernels.models.create`, or null; a name may be an import path
    versions         {module name: version} of the modules whose state dict has another version than 1
    extra            whatever the caller added

Format 1 called `int8_weight` `weight`, and had no plain and no versions.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.parameter import is_lazy

from qkernels.modules.copying import unwrapped
from qkernels.modules.swap import ModuleSwap
from qkernels.nn import ClampedReLU, QuantModule, fix_mean_order_
from qkernels.nn.registry import LayerSpec, spec_of, spec_of_int8
from qkernels.plain import is_plain, plain_class, recomputing_hooks
from qkernels.quantization.fold import FOLDED, own_weight, placeholder
from qkernels.quantization.prepare import call_layers_plainly
from qkernels.utils.files import replacing

FORMAT_VERSION = 2
_KEY = "qkernels"
_NOT_COMPARED = ("kind", "bias", "activation", "symmetric", "dtype")


class CheckpointError(ValueError):
    """A file that cannot be loaded, or a model that cannot be saved; the message says why."""


def save(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    architecture: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Write `model` to one safetensors file, atomically: readers see the old file or the new one.

    Args:
        model: what `quantize` returned, with what came after it.
        path: of the file, which is replaced at once.
        architecture: `{"name": ..., "kwargs": {...}}` for `qkernels.models.create`, with which
            `load(path)` rebuilds the model alone.
        extra: JSON-able values to keep in the file, see `read_metadata`.

    Raises:
        CheckpointError: for state that is no tensor or has no values, `architecture` or `extra`
            that JSON cannot hold.
    """
    model, _ = unwrapped(model)
    tensors, aliases = _stored_once(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    metadata = {
        "format_version": FORMAT_VERSION,
        "qkernels_version": _version(),
        "plain": {n: cast(Any, m).scheme() for n, m in modules.items() if is_plain(m)},
        "modules": {name: m.scheme() for name, m in modules.items() if isinstance(m, QuantModule)},
        "folded": {
            name: {"kind": type(m).__name__, "into": m.into, "rest": getattr(m, "rest", [])}
            for name, m in modules.items()
            if isinstance(m, FOLDED)
        },
        "clamped": {n: m.ceiling.numel() for n, m in modules.items() if isinstance(m, ClampedReLU)},
        "aliases": aliases,
        "versions": {n: m._version for n, m in modules.items() if m._version != 1},
        "architecture": _checked_architecture(architecture),
        "extra": dict(extra or {}),
    }
    try:
        text = json.dumps(metadata)
    except TypeError as error:
        raise CheckpointError(f"architecture and extra must be JSON-able: {error}") from error
    with replacing(path) as aside:
        safetensors.torch.save_file(tensors, aside, metadata={_KEY: text})


@torch.inference_mode(False)  # whose tensors nothing could load into or train
def load(
    path: str | os.PathLike[str],
    model: nn.Module | Callable[[], nn.Module] | None = None,
    *,
    device: str | torch.device = "cpu",
    trust: bool = False,
) -> nn.Module:
    """Rebuild the model saved at `path`: same tensors, bit for bit, in eval mode.

    Args:
        path: of a file that `save` wrote.
        model: the float model that was quantized (on any device, also meta; it is changed), or a
            function that makes one (its parameters are never allocated). None: the file's
            architecture, made by `qkernels.models.create`.
        device: where the tensors go.
        trust: also build models whose code lies outside the installed packages, or is no class, where the file names
            one: that runs the code.

    Returns:
        The model; for a root that is itself a layer another object than `model`.

    Raises:
        CheckpointError: for a file that is truncated, foreign or of a newer format, and for a
            model whose layers, names or shapes differ from the file's.
        FileNotFoundError: when there is no such file.
    """
    path = Path(path)
    metadata, tensors = _read(path, str(device))
    if not isinstance(model, nn.Module):
        factory = model if model is not None else _registered(path, metadata["architecture"], trust)
        model = _built(factory)
    try:
        model = _with_empty_layers(model, metadata, {*tensors, *metadata["aliases"]})
        _fill(model, tensors, metadata)
    except CheckpointError as error:
        raise CheckpointError(f"{path} does not fit {type(model).__name__}: {error}") from error
    return model.to(device).eval()


def read_metadata(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The metadata of a saved model (see the module's text), without its tensors.

    Raises:
        CheckpointError: for a file that is truncated, foreign or of a newer format.
    """
    with _opened(Path(path), "cpu") as file:
        return _checked_metadata(Path(path), file.metadata())


# --- writing -----------------------------------------------------------------------------------


def _stored_once(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The state dict with every tensor once, and {other name: its name}."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    storages: set[int] = set()
    shared = _shared_names(model)
    for name, value in model.state_dict().items():
        if name in shared:
            aliases[name] = shared[name]
            continue
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{name!r} is a {type(value).__name__}, not a tensor")
        if value.is_meta:
            raise CheckpointError(f"{name!r} is on the meta device: it has no values to save")
        storage = value.untyped_storage().data_ptr()
        key = (storage, value.storage_offset(), value.shape, value.stride(), value.dtype)
        if value.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        value = value.detach().contiguous()
        overlaps = storage in storages and value.untyped_storage().data_ptr() == storage
        tensors[name] = value.clone() if overlaps else value
        storages.add(storage)
    return tensors, aliases


def _shared_names(model: nn.Module) -> dict[str, str]:
    """State dict names of shared modules under their later names -> under their first."""
    first: dict[nn.Module, str] = {}
    weights: dict[int, str] = {}
    shared: dict[str, str] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if first.setdefault(module, name) != name:
            keys = nn.Module.state_dict(module).keys()
            shared |= {f"{name}.{key}": f"{first[module]}.{key}".lstrip(".") for key in keys}
        elif isinstance(module, QuantModule):  # a state dict unpacks a tied weight twice
            holder = weights.setdefault(id(module.packed_weight), name)
            if holder != name:
                shared[f"{name}.int8_weight"] = f"{holder}.int8_weight"
    return shared


def _checked_architecture(architecture: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if architecture is None:
        return None
    if not isinstance(architecture.get("name"), str) or set(architecture) - {"name", "kwargs"}:
        raise CheckpointError(f"architecture={architecture!r} must be {{'name', 'kwargs'}}")
    return {"name": architecture["name"], "kwargs": dict(architecture.get("kwargs") or {})}


def _version() -> str:
    import qkernels

    return str(getattr(qkernels, "__version__", "unknown"))


# --- reading -----------------------------------------------------------------------------------


@contextlib.contextmanager
def _opened(path: Path, device: str) -> Iterator[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        with safetensors.safe_open(path, framework="pt", device=device) as file:
            yield file
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"{path} is truncated or not a safetensors file ({error}): copy or save it again"
        ) from error


def _read(path: Path, device: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Metadata and tensors; the file may change or go once the model is filled from them."""
    with _opened(path, device) as file:
        metadata = _checked_metadata(path, file.metadata())
        repacked = {
            f"{name}.{key}".lstrip(".")
            for name in metadata["modules"]
            for key in ("weight", "int8_weight")
        }
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    # safetensors maps the file: what the model would keep as it is must be a copy
    return metadata, {n: t if n in repacked else t.clone() for n, t in tensors.items()}


def _checked_metadata(path: Path, metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if not metadata or _KEY not in metadata:
        raise CheckpointError(f"{path} was not written by qkernels.save: it has no qkernels header")
    values = cast(dict[str, Any], json.loads(metadata[_KEY]))
    if values["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format {values['format_version']}, written by qkernels "
            f"{values['qkernels_version']}; this qkernels reads up to {FORMAT_VERSION}: upgrade it"
        )
    return values


def _registered(
    path: Path, architecture: Mapping[str, Any] | None, trust: bool
) -> Callable[[], nn.Module]:
    if architecture is None:
        raise CheckpointError(f"{path} does not name an architecture: give load(path, model=...)")
    from qkernels.models import check_trusted, create, is_named_by_source

    if is_named_by_source(architecture["name"]) and not trust:
        try:
            check_trusted(architecture["name"])
        except (ImportError, ValueError) as error:
            raise CheckpointError(
                f"{path} names its model: {error}; say trust=True (--trust) if you trust both"
            ) from error
    return lambda: create(architecture["name"], **architecture["kwargs"])


def _built(factory: Callable[[], nn.Module]) -> nn.Module:
    """The factory's model without memory for its parameters; with it where the factory needs their values."""
    try:
        with _parameters_on_meta():
            return factory()
    except Exception:  # a constructor may run a part of the model, to find a size
        return factory()


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Modules made inside by this thread get parameters without memory; buffers stay real."""
    thread = threading.get_ident()

    def to_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter | None:
        if threading.get_ident() != thread or is_lazy(parameter) or parameter.is_meta:
            return None
        return nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)

    handle = register_module_parameter_registration_hook(cast(Any, to_meta))
    try:
        yield
    finally:
        handle.remove()


def _with_empty_layers(
    model: nn.Module, metadata: Mapping[str, Any], names: Collection[str]
) -> nn.Module:
    """Put everything in that the file says stands in the model: plain modules, placeholders, int8 layers.

    `names` are those of all tensors in the file.
    """
    swap = ModuleSwap(model)
    for name, scheme in metadata.get("plain", {}).items():
        _put(swap, name, _empty(plain_class(scheme["kind"]), scheme))
    for name, folded in metadata["folded"].items():
        _put(swap, name, _placeholder(_module(swap.model, name), name, folded))
    for name, channels in metadata.get("clamped", {}).items():
        _put(swap, name, _clamped(_module(swap.model, name), name, channels))
    empty: dict[nn.Module, nn.Module] = {}  # a shared layer stays shared
    for name, scheme in metadata["modules"].items():
        layer = _checked_layer(name, _module(swap.model, name), scheme)
        if layer not in empty.values():
            spec = spec_of_int8(scheme["kind"])
            empty[layer] = _empty(spec and spec.int8_class, scheme)
            if not own_weight(layer):
                for key in recomputing_hooks(layer):
                    del layer._forward_pre_hooks[key]
            swap.put(layer, empty[layer], own=("weight", "bias", *_used_up(layer, name, names)))
    model = swap.finish()
    call_layers_plainly(model, metadata["modules"])
    return fix_mean_order_(model)


def _used_up(layer: nn.Module, name: str, names: Collection[str]) -> set[str]:
    """Parameters, buffers and submodules of a layer that the file lacks: its int8 weight was made of them."""
    kept = {n.removeprefix(f"{name}.").split(".")[0] for n in names if n.startswith(f"{name}.")}
    return {key.split(".")[0] for key in layer.state_dict()} - (kept if name else {*names})


def _put(swap: ModuleSwap, name: str, new: nn.Module) -> None:
    old = _module(swap.model, name)
    if old is None:
        raise CheckpointError(f"the file has a {type(new).__name__} at {name!r}, the model nothing")
    swap.put(old, new)


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules(remove_duplicate=False)).get(name)


def _placeholder(norm: nn.Module | None, name: str, folded: Mapping[str, Any]) -> nn.Module:
    if not isinstance(norm, (_BatchNorm, nn.Identity, *FOLDED)):
        raise CheckpointError(f"the file folded a batch norm {name!r} that the model lacks")
    return placeholder(
        norm, folded["into"], folded["kind"] == "FoldedBatchNorm1d", folded.get("rest", [])
    )


def _clamped(relu: nn.Module | None, name: str, channels: int) -> nn.Module:
    if not isinstance(relu, nn.ReLU6 | ClampedReLU):
        raise CheckpointError(f"the file clamped a ReLU6 {name!r} that the model lacks")
    return ClampedReLU(torch.empty(channels, device="meta"))


def _empty(kind: Any, scheme: Mapping[str, Any]) -> nn.Module:
    if kind is None:
        raise CheckpointError(
            f"the file has a {scheme['kind']}, which this qkernels does not know: upgrade, or register it"
        )
    with torch.device("meta"):
        return kind.from_scheme(dict(scheme))


def _checked_layer(name: str, layer: nn.Module | None, scheme: Mapping[str, Any]) -> nn.Module:
    """`layer`, once it is clear that `scheme` describes its int8 form."""
    kind, spec = scheme["kind"], spec_of_int8(scheme["kind"])
    if spec is None:
        raise CheckpointError(
            f"{name!r} is a {kind}, which this qkernels does not know: upgrade, or register it"
        )
    becomes = getattr(layer, "cls_to_become", None) or type(layer)  # of a lazy layer
    if layer is None or not (
        issubclass(becomes, spec.float_class) or _holds_as_much(layer, spec, scheme)
    ):
        found = "nothing" if layer is None else f"a {type(layer).__name__}"
        raise CheckpointError(f"the file has a {kind} at {name!r}, the model {found}")
    ordinary = spec_of(layer) is spec or isinstance(layer, QuantModule)
    unset = (
        0 if isinstance(layer, LazyModuleMixin) else None
    )  # a size that a lazy layer has not seen
    for key, value in scheme.items():
        ours = getattr(layer, key, None)
        if not ordinary or key in _NOT_COMPARED or ours in (None, unset):
            continue
        ours = list(ours) if isinstance(ours, tuple) else ours
        value = list(value) if isinstance(value, tuple) else value
        if ours != value:
            raise CheckpointError(f"{name!r} has {key}={value} in the file, {ours} in the model")
    return layer


def _holds_as_much(layer: nn.Module, spec: LayerSpec, scheme: Mapping[str, Any]) -> bool:
    """Whether the module may be one that was made plain: a tensor of it has as many values as the int8 weight."""
    with torch.device("meta"):
        values = math.prod(spec.int8_class.from_scheme(dict(scheme)).weight_size)
    return any(tensor.numel() == values for tensor in layer.parameters())


def _fill(model: nn.Module, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Give every tensor of the model its value from the file; neither may hold more."""
    aliases, versions = metadata["aliases"], metadata.get("versions", {})
    values = dict(tensors) | {name: tensors[stored] for name, stored in aliases.items()}
    state: Any = OrderedDict(values)
    state._metadata = {
        name: {"version": versions.get(name, 1)} for name, _ in model.named_modules()
    }
    try:
        missing, unexpected = model.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise CheckpointError(" ".join(str(error).split())) from error
    if missing or unexpected:
        problems = [("the file lacks", missing), ("the model lacks", unexpected)]
        raise CheckpointError("; ".join(f"{who} {_few(names)}" for who, names in problems if names))
    for name, stored in aliases.items():
        _tie(model, name, stored)
    unset = [n for n, t in (*model.named_parameters(), *model.named_buffers()) if t.is_meta]
    if unset:
        raise CheckpointError(
            f"{_few(unset)} is not in the file and has no values on the meta device: give a "
            "model or function that computes it"
        )


def _tie(model: nn.Module, name: str, stored: str) -> None:
    """Make two names one parameter again, as they were when saved."""
    (owner, _, key), (other, _, other_key) = name.rpartition("."), stored.rpartition(".")
    tied, first = model.get_submodule(owner), model.get_submodule(other)
    if key == "int8_weight" and isinstance(first, QuantModule) and isinstance(tied, QuantModule):
        first.tie(tied)
    target, source = tied._parameters, first._parameters
    if key in target and other_key in source:
        target[key] = source[other_key]


def _few(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"
