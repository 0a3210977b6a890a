"""What structured pruning took away, layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qkernels.models.channels import Sizes
from qkernels.utils.charts import STYLE, VARIANTS, chart
from qkernels.utils.columns import aligned, rich_table
from qkernels.utils.extras import require

if TYPE_CHECKING:
    from rich.table import Table

    from qkernels.measuring.speed import Speeds


@dataclass(frozen=True)
class LayerChannels:
    """(outputs, inputs) of a layer before and after."""

    name: str
    type: str
    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(kw_only=True)
class ChannelReport:
    """The report of `prune_channels` and its like. `print` it, or keep `to_dict()`.

    Attributes:
        layers: every Conv2d and Linear, in model order.
        macs, parameters: before and after; multiply-adds of one image.
        channels: what `models.create(name, channels=...)` needs to make this model again.
        multiple, held: channel counts are multiples of `multiple`, for which `held` channels stayed.
        speed: row name -> figures; empty until given what `compare_speed` returns.
        notes: sentences about layers that had to stay.
    """

    layers: list[LayerChannels]
    macs: tuple[int, int]
    parameters: tuple[int, int]
    channels: Sizes
    multiple: int = 1
    held: int = 0
    speed: dict[str, Speeds] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON-able values."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        lines = aligned([_HEADER, *map(_row, self.layers)])
        return "\n".join([self._summary(), *lines, *self._remarks()])

    def __rich__(self) -> Table:
        rows = [(_row(layer), layer.before == layer.after) for layer in self.layers]
        return rich_table(self._summary(), _HEADER, rows, self._remarks())

    def _summary(self) -> str:
        return (
            f"multiply-adds {_change(*self.macs)}, parameters {_change(*self.parameters)}, "
            f"{sum(layer.before != layer.after for layer in self.layers)} of {len(self.layers)} "
            "layers smaller"
        )

    def _remarks(self) -> list[str]:
        lines = [
            f"{name}, {speeds.form}: {speeds.one_thread.p50_ms:.3g} ms for one image on one thread, "
            f"{speeds.all_threads.images_per_second:,.0f} images/s on {speeds.all_threads.threads}"
            for name, speeds in self.speed.items()
        ]
        if self.multiple > 1:
            lines.append(
                f"note: {self.held} channels stayed that fill multiples of {self.multiple}: the int8 kernels "
                "compute whole panels"
            )
        return lines + [f"note: {note}" for note in self.notes]


_HEADER = ("layer", "type", "outputs", "inputs", "left")


def _row(layer: LayerChannels) -> tuple[str, ...]:
    (outputs, inputs), (fewer, read) = layer.before, layer.after
    left = fewer * read / (outputs * inputs)
    bar = "#" * round(20 * left)
    sides = (_arrow(outputs, fewer), _arrow(inputs, read))
    return layer.name, layer.type, *sides, f"{bar:20} {left:.0%}"


def _arrow(before: int, after: int) -> str:
    return f"{before}" if before == after else f"{before} -> {after}"


def _change(before: int, after: int) -> str:
    return f"{before:,} -> {after:,} ({after / before - 1:+.1%})"


def draw(reports: Mapping[str, ChannelReport]) -> str:
    """Output channels left in each layer as an SVG, one line a report, in the style of `qkernels.utils.charts`."""
    with require("matplotlib").rc_context(STYLE), chart(height=3.4) as (axes, svg):
        for color, (name, report) in zip(VARIANTS, reports.items(), strict=False):
            layers = [layer.name for layer in report.layers]
            left = [100 * layer.after[0] / layer.before[0] for layer in report.layers]
            axes.plot(layers, left, "o-", color=color, markersize=4, label=name)
        axes.set_ylabel("% of output channels left")
        axes.tick_params(axis="x", labelrotation=90, labelsize=7)
        axes.set_ylim(0, 105)
        axes.legend(loc="lower left")
    return svg[0]
