"""Results of benchmarks/serving.py, faults.py and soak.py in docs/serving.md, with plots.

python benchmarks/make_serving_doc.py RESULTS.json...
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import make_docs
from make_docs import line, pyplot, table, unique, versions_of
from served import (
    ALONE,
    BATCHED,
    BOUNDED,
    BY_GRPC,
    CALL,
    OURS,
    OVERLOAD,
    PEER,
    PIXELS,
    ROWS,
    UNBATCHED,
    Row,
)

PAGE = make_docs.DOCS / "serving.md"


class Figures:
    """The rows of benchmarks/serving.py by model, server and run."""

    def __init__(self, results: Row) -> None:
        self.results, self._rows = results, results["rows"]
        self.models: list[str] = unique(row["model"] for row in self._rows if row["run"] != ROWS)
        self.batched: list[str] = unique(row["model"] for row in self._rows if row["run"] == ROWS)

    def servers(self, model: str) -> list[str]:
        return unique(
            row["server"] for row in self._rows if row["model"] == model and row["run"] != ROWS
        )

    def get(self, model: str, server: str, run: str, figure: str) -> Any:
        """None: not measured, or nothing was answered."""
        key = {"model": model, "server": server, "run": run}
        for row in self._rows:
            if key.items() <= row.items():
                return row[figure]
        return None

    def rate(self, model: str, server: str, run: str) -> float | None:
        rate: float | None = self.get(model, server, run, "answered_per_second")
        return rate


def serving_text(results: Row) -> str:
    """The machine, the targets, and all rows."""
    figures, machine = Figures(results), results["machine"]
    return "\n".join(
        [
            f"{machine['cpu']}, instruction set **{machine['isa']}**; the server on cores {results['server_cores']}, "
            f"{results['threads']} threads a call, the load generator on {results['client_cores']}, "
            f"{results['seconds']:g} s a run; {versions_of(machine)}.\n",
            f"    {results['command']}\n",
            targets_text(figures),
            rates_text(figures),
            batches_text(figures),
            overload_text(figures),
            plot_text(figures),
        ]
    )


def targets_text(figures: Figures) -> str:
    def row(name: str, target: str, of: Any) -> str:
        return line([name, target, *(of(model) for model in figures.models)])

    def overhead(run: str) -> Any:
        def cell(model: str) -> str:
            served = figures.get(model, OURS, run, "p50_ms")
            called = figures.get(model, OURS, CALL, "p50_ms")
            return "" if served is None or called is None else f"{served - called:.2f} ms"

        return cell

    def ratio(of: tuple[str, str], to: tuple[str, str]) -> Any:
        def cell(model: str) -> str:
            first, second = figures.rate(model, *of), figures.rate(model, *to)
            return "" if first is None or not second else f"{first / second:.2f}"

        return cell

    return "\n".join(
        [
            table(["", "target", *figures.models], left=2),
            row("p50 of one client over HTTP beyond that of a call", "0.25 ms", overhead(ALONE)),
            row("p50 of one client over gRPC beyond that of a call", "0.35 ms", overhead(BY_GRPC)),
            row(
                "throughput within the bound / ONNX Runtime's, same HTTP layer",
                "1.2",
                ratio((OURS, BOUNDED), (PEER, BOUNDED)),
            ),
            row("32 clients: batches / one by one", "", ratio((OURS, BATCHED), (OURS, UNBATCHED))),
            row(
                "answered at twice the capacity / capacity",
                "0.85",
                ratio((OURS, OVERLOAD), (OURS, BATCHED)),
            ),
            row("pictures as UINT8 / as FP32", "1.3", ratio((PIXELS, BATCHED), (OURS, BATCHED))),
            "",
        ]
    )


def rates_text(figures: Figures) -> str:
    """A table a model: latency of one client, answers a second of the other runs."""
    parts = []
    for model in figures.models:
        bound = figures.results["models"][model]["bound_ms"]
        head = [model, "1 client: p50, ms", "p99, ms", "32 clients, one by one: /s"]
        head += [
            f"batches of {figures.results['models'][model]['batch']}: /s",
            "p99, ms",
            f"p99 below {bound:g} ms: /s",
        ]
        parts.append(table(head))
        for server in figures.servers(model):
            cells = [
                shown(figures.get(model, server, ALONE, "p50_ms"), 2),
                shown(figures.get(model, server, ALONE, "p99_ms"), 2),
                shown(figures.rate(model, server, UNBATCHED)),
                shown(figures.rate(model, server, BATCHED)),
                shown(figures.get(model, server, BATCHED, "p99_ms"), 1),
                shown(figures.rate(model, server, BOUNDED)),
            ]
            parts.append(line([server, *cells]))
        parts.append("")
    return "\n".join(parts)


def batches_text(figures: Figures) -> str:
    """What a row costs by the size of its batch, without a server."""
    costs = {model: figures.get(model, OURS, ROWS, "row_ms") for model in figures.batched}
    sizes = sorted({rows for cost in costs.values() for rows in cost}, key=int)
    lines = [table(["ms a row in a batch of", *sizes])]
    for model, cost in costs.items():
        lines.append(line([model, *(shown(cost.get(rows), 3) for rows in sizes)]))
    return "\n".join(lines) + "\n"


def overload_text(figures: Figures) -> str:
    names = {
        "sent_per_second": "sent/s", "answered_per_second": "answered/s", "p99_ms": "p99, ms",
        "refused_per_second": "refused/s", "refused_p99_ms": "refused after, p99, ms", "unanswered": "no answer",
    }  # fmt: skip
    lines = [table(["twice the capacity", "rows that may wait", "capacity/s", *names.values()])]
    for model in figures.models:
        if figures.rate(model, OURS, OVERLOAD) is None:
            continue
        cells = [shown(figures.get(model, OURS, OVERLOAD, name)) for name in names]
        queue, capacity = (
            figures.results["models"][model]["queue"],
            figures.rate(model, OURS, BATCHED),
        )
        lines.append(line([model, queue, shown(capacity), *cells]))
    return "\n".join(lines) + "\n"


def plot_text(figures: Figures) -> str:
    """Answers a second of every server, a panel a model."""
    runs = {BOUNDED: "#1f6f8b", BATCHED: "#8aa7b3", UNBATCHED: "#dde3e6"}
    size = (9, 1.0 + 0.7 * max(len(figures.servers(model)) for model in figures.models))
    figure, panels = pyplot.subplots(
        1, len(figures.models), figsize=size, layout="constrained", squeeze=False
    )
    for axes, model in zip(panels[0], figures.models, strict=True):
        servers = figures.servers(model)
        for index, (run, color) in enumerate(runs.items()):
            rates = [figures.rate(model, server, run) or 0.0 for server in servers]
            places = [place + (index - 1) * 0.27 for place in range(len(servers))]
            axes.barh(places, rates, 0.27, label=run, color=color)
        axes.set_yticks(range(len(servers)), servers)
        axes.invert_yaxis()
        axes.set_xlabel(f"{model}, answers a second")
    panels[0][0].legend(fontsize=8)
    return _save(figure, "serving", "Answers a second")


def soak_text(results: Row) -> str:
    """What was asked and answered, and the memory of the serving process over the time."""
    minutes, megabytes, files = zip(*results["samples"], strict=True)
    later = megabytes[len(megabytes) // 5 :]
    lines = [
        f"{results['minutes']:g} minutes, four models whose files are replaced ten times and a version that comes and "
        f"goes, {results['wrong']} wrong answers. "
        f"After the first fifth of the time memory is between {min(later):.0f} and {max(later):.0f} MB; from the "
        f"second fifth to the last its mean changes by {results['growth_mb']:+.1f} MB (bound "
        f"{results['bound_mb']:+g} MB). Open files: {files[0]} at the beginning, {files[-1]} at the end.\n",
        f"    {results['command']}\n",
        table(["requests", "answer", "count"], left=2),
        *(line([row["kind"], row["got"], f"{row['count']:,}"]) for row in results["answers"]),
        "",
    ]
    figure, axes = pyplot.subplots(figsize=(9, 2.2), layout="constrained")
    axes.plot(minutes, megabytes, color="#1f6f8b")
    axes.set_ylim(0, 1.2 * max(megabytes))
    axes.set_xlabel("minutes")
    axes.set_ylabel("resident memory, MB")
    return "\n".join(lines) + "\n" + _save(figure, "soak", "Memory of the serving process")


def faults_text(results: Row) -> str:
    """What the other clients got while something went wrong, and what it left."""
    names = {
        "answered": "answered", "refused": "503", "lost": "connection lost", "hung": "no answer", "p99_ms": "p99, ms",
        "longest_pause": "longest pause, s", "memory_mb": "MB before", "memory_after_mb": "MB after",
    }  # fmt: skip
    digits = {"p99_ms": 1, "longest_pause": 2}
    lines = [table(["meanwhile", *names.values()])]
    for row in results["faults"]:
        cells = [shown(row[name], digits.get(name, 0)) for name in names]
        lines.append(line([row["fault"], *cells]))
    start = results["start"]
    lines.append(
        f"\nA folder of {start['models']} models of {start['model_mb']:.1f} MB is ready {start['ready_after']:.2f} s "
        f"after the server was started, which then has {start['memory_mb']:.0f} MB.\n\n    {results['command']}\n"
    )
    return "\n".join(lines)


def _save(figure: Any, name: str, alt: str) -> str:
    path = make_docs.DOCS / "benchmarks" / f"{name}.svg"
    path.parent.mkdir(exist_ok=True)
    make_docs.matplotlib.rcParams["svg.hashsalt"] = "qkernels"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return f"![{alt}](benchmarks/{path.name})\n"


def shown(value: float | None, digits: int = 0) -> str:
    return "" if value is None else f"{value:,.{digits}f}"


def put(name: str, text: str) -> None:
    """Between the marks of this name in docs/serving.md."""
    before, mark, rest = PAGE.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition("<!-- end -->")
    if not (mark and end):
        raise SystemExit(f"{PAGE} has no place marked {name}")
    PAGE.write_text(before + mark + text + end + after)


def main(paths: list[Path]) -> None:
    for path in paths:
        results = json.loads(path.read_text())
        if "samples" in results:
            put("soak", soak_text(results))
        elif "faults" in results:
            put("faults", faults_text(results))
        else:
            put("serving", serving_text(results))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(path) for path in sys.argv[1:]])
