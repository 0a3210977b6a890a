"""Say what this machine can run, and what will run."""

from __future__ import annotations

from rich.table import Table

import qkernels._core as kernel_core
from qkernels import data as datasets
from qkernels import models
from qkernels.cli.printing import say, say_pairs
from qkernels.measuring.machine import describe_cuda, describe_machine


def command() -> None:
    facts = describe_machine()
    limit = facts["isa_limit"]
    features = [name for name, present in kernel_core.cpu_features().items() if present]
    why = f"QKERNELS_MAX_ISA={limit}" if limit else "the best this machine has"
    say_pairs(
        {
            "processor": f"{facts['cpu']}, {facts['cores']} usable cores",
            "threads": str(facts["threads"]),
            "it runs": ", ".join(features),
            "in use": f"{facts['isa']} ({why})",
            "CUDA kernels": describe_cuda(),
            "versions": ", ".join(f"{k} {v}" for k, v in facts["versions"].items()),
            "models": ", ".join(models.available()),
            "data sets": ", ".join(datasets.available()),
        }
    )
    table = Table("instruction set", "matrix kernel", "rows at once", "runs here")
    for row in kernel_core.kernels():
        runs = "yes" if row["available"] else "no"
        table.add_row(row["isa"], row["gemm"], str(row["row_tile"]), runs)
    say(table)
