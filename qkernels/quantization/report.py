"""What a conversion did, layer by layer, and why it left the rest."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from qkernels.quantization.config import QuantConfig
from qkernels.utils.columns import aligned, rich_table

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(kw_only=True)
class LayerReport:
    """One layer of the model.

    Attributes:
        name: full module name; `aliases` are the other names of a shared module.
        type: class name before the conversion.
        action: `converted` to int8 or `skipped` (left in float), and the `reason` of a skip.
        scheme: of the converted module, see `QuantLinear.scheme`.
        input_scale, input_zero_point: of a static layer.
        bytes_before, bytes_after: of its own part of the state dict.
    """

    name: str
    type: str
    action: Literal["converted", "skipped"]
    reason: str = ""
    scheme: dict[str, Any] | None = None
    input_scale: float | None = None
    input_zero_point: int | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    aliases: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class QuantReport:
    """The report of `quantize`. `print` it, or keep `to_dict()`.

    Attributes:
        layers: every layer with weights, in model order.
        folded: (layer, batch norm) names of the batch norms folded away.
        notes: sentences about anything else worth knowing.
        bytes_before, bytes_after: of the state dict, shared tensors once.
        sqnr_db: output of the model -> 10 log10 of the float answer's energy over that of the error, on the example;
            inf where both are equal, NaN where their shapes differ. Empty where no example was known.
    """

    config: QuantConfig
    layers: list[LayerReport] = field(default_factory=list)
    folded: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    bytes_before: int = 0
    bytes_after: int = 0
    sqnr_db: dict[str, float] = field(default_factory=dict)

    @property
    def converted(self) -> list[LayerReport]:
        """The layers that became int8, in the order of the model."""
        return [layer for layer in self.layers if layer.action == "converted"]

    @property
    def skipped(self) -> list[LayerReport]:
        """The layers that stayed in float, each with its reason."""
        return [layer for layer in self.layers if layer.action == "skipped"]

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return dataclasses.asdict(self) | {
            "config": self.config.to_dict(),
            "folded": [list(pair) for pair in self.folded],
            "sqnr_db": {k: db if math.isfinite(db) else str(db) for k, db in self.sqnr_db.items()},
        }

    def __str__(self) -> str:
        lines = aligned([_HEADER, *map(_row, self.layers)])
        return "\n".join([self._summary(), *lines, *self._remarks()])

    def __rich__(self) -> Table:
        rows = [(_row(layer), layer.action != "converted") for layer in self.layers]
        return rich_table(self._summary(), _HEADER, rows, self._remarks())

    def _summary(self) -> str:
        return (
            f"{len(self.converted)} of {len(self.layers)} layers to int8, {len(self.folded)} batch "
            f"norms folded, {_size(self.bytes_before)} -> {_size(self.bytes_after)}"
        )

    def _remarks(self) -> list[str]:
        levels = ", ".join(f"{name} {db:.1f} dB" for name, db in self.sqnr_db.items())
        checked = (
            [f"the int8 model's answer to the example: {levels} of the float model's"]
            if levels
            else []
        )
        return checked + [f"note: {note}" for note in self.notes]


_HEADER = ("layer", "type", "to", "input scale", "zero point", "size")


def _row(layer: LayerReport) -> tuple[str, ...]:
    name = layer.name or "(the model)"
    size = f"{_size(layer.bytes_before)} -> {_size(layer.bytes_after)}"
    if layer.scheme is None:
        return name, layer.type, f"skipped: {layer.reason}", "", "", _size(layer.bytes_before)
    scale = "" if layer.input_scale is None else f"{layer.input_scale:.4g}"
    zero_point = "" if layer.input_zero_point is None else str(layer.input_zero_point)
    return name, layer.type, f"int8 {layer.scheme['activation']}", scale, zero_point, size


def _size(count: float) -> str:
    for unit in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
