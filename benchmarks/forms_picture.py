"""Time for one image of float32, int8 layer by layer, compiled, and as a program -> docs/benchmarks/forms.svg.

python benchmarks/forms_picture.py   # from benchmarks/results-models-amx.json
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

ROOT = Path(__file__).parents[1]
OUT = ROOT / "docs" / "benchmarks" / "forms.svg"
MODELS = ("resnet50", "resnet18", "mobilenet_v2", "resnet20")
FORMS = {  # name of the contender -> what the picture calls it, and its colour
    "torch fp32": ("torch float32", "#8fa3b8"),
    "qkernels, layer by layer": ("int8, layer by layer", "#f0b592"),
    "qkernels": ("int8, compiled", "#e58a55"),
    "qkernels, without torch": ("program without torch", "#d9622b"),
}


def shown(time: float) -> str:
    """Three digits, and no point behind the last."""
    return f"{time:#.3g}".rstrip(".")


def draw(results: dict[str, Any], out: Path) -> None:
    """One panel a model, one bar a form: milliseconds of one image on one thread."""
    rows = {r["model"]: r["us"] for r in results["rows"] if (r["batch"], r["threads"]) == (1, 1)}
    matplotlib.rcParams |= {"svg.hashsalt": "qkernels", "svg.fonttype": "none", "font.size": 10}
    figure, panels = pyplot.subplots(1, len(MODELS), figsize=(11, 2.1), layout="constrained")
    names, colors = zip(*FORMS.values(), strict=True)
    for axes, model in zip(panels, MODELS, strict=True):
        times = [rows[model][form][0] / 1e3 for form in FORMS]
        axes.barh(names if axes is panels[0] else range(len(names)), times, color=colors)
        for place, time in enumerate(times):
            faster = f" ({times[0] / time:.1f}x)" if place else ""
            axes.annotate(f"{shown(time)} ms{faster}", (time, place), (4, 0), va="center",
                          textcoords="offset points", fontsize=9)  # fmt: skip
        axes.set(title=model, xlim=(0, 1.35 * times[0]), xticks=[])
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)
        axes.tick_params(left=False, labelleft=axes is panels[0])
    figure.savefig(out, metadata={"Date": None})
    pyplot.close(figure)


if __name__ == "__main__":
    draw(json.loads((ROOT / "benchmarks" / "results-models-amx.json").read_text()), OUT)
