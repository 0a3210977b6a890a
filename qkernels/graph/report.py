"""What there is to tell of a compiled model: where int8 flows, and where and why it does not."""

from __future__ import annotations

from dataclasses import dataclass, field

from qkernels.utils.columns import aligned


@dataclass
class LayerChain:
    """One call of an int8 layer: what it reads, what it fused, what it writes."""

    name: str
    reads: str
    fused: tuple[str, ...] = ()
    writes: str = "float32"
    why: str = ""  # the output is float


@dataclass
class ChainReport:
    """``layers`` in order of execution; ``unfused`` names the steps left to torch.

    ``uncaptured`` says why only parts of the model are compiled, and which; it is empty where the whole model is.
    ``sqnr_db``: output -> 10 log10 of its energy over that of its distance from the un-chained model's, on the example.
    """

    layers: list[LayerChain] = field(default_factory=list)
    unfused: list[str] = field(default_factory=list)
    sqnr_db: dict[str, float] = field(default_factory=dict)
    uncaptured: str = ""

    @property
    def chained(self) -> int:
        """Layers that write int8."""
        return sum(layer.writes == "int8" for layer in self.layers)

    def __repr__(self) -> str:
        rows = [("layer", "reads", "fused", "writes", "why float")]
        rows += [(r.name, r.reads, ", ".join(r.fused), r.writes, r.why) for r in self.layers]
        lines = aligned(rows)
        lines.append(f"{self.chained} of {len(self.layers)} layers write int8")
        if self.unfused:
            lines.append(f"left to torch: {', '.join(self.unfused)}")
        if self.uncaptured:
            lines.append(self.uncaptured)
        return "\n".join(lines)
