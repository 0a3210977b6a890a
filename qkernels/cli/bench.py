"""Time int8 layers against torch's float32 and bfloat16 ones, in turns, in one process."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from qkernels.cli.printing import check_writable, say
from qkernels.measuring.bench import BenchRow, bench_results, geometric_means, run_bench

COLUMNS = 122  # of the terminal; a narrower one wraps lines, but no figure is cut


def command(
    only: Annotated[str, typer.Option(help="Cases whose kind and name hold this text.")] = "",
    threads: Annotated[list[int] | None, typer.Option(help="May be given twice.")] = None,
    quick: Annotated[bool, typer.Option(help="A tenth of the time, and less sure.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    check_writable(json_file)
    rows = run_bench(only, threads=threads or [torch.get_num_threads()], quick=quick)
    Console(width=max(Console().width, COLUMNS)).print(_bench_table(rows))
    means = Table("kind", "int8 form", "threads", "x fp32, geometric mean")
    for (kind, form, count), ratio in geometric_means(rows).items():
        means.add_row(kind, form, str(count), f"{ratio:.2f}")
    say(means)
    slower = sum(row.ratio < 1 for row in rows)
    say(f"▼ int8 is slower than float32 in {slower} of {len(rows)} rows")
    if json_file:
        command = shlex.join(["qkernels", *sys.argv[1:]])
        json_file.write_text(json.dumps(bench_results(rows, command), indent=1) + "\n")
        say(f"wrote {json_file}")


def _bench_table(rows: list[BenchRow]) -> Table:
    table = Table(box=SIMPLE_HEAD)
    for heading in ("case", "int8 form"):
        table.add_column(heading, no_wrap=True)
    for heading in ("threads", "µs", "p10-p90", "GOPS", "fp32 µs", "x fp32", "x bf16"):
        table.add_column(heading, justify="right")
    for row in rows:
        table.add_row(
            row.case,
            row.form,
            str(row.threads),
            f"{row.median_us:,.1f}",
            f"{row.p10_us:,.0f}-{row.p90_us:,.0f}",
            f"{row.gops:,.0f}",
            f"{row.fp32_us:,.1f}",
            f"{row.ratio:.2f}" if row.ratio >= 1 else f"▼ {row.ratio:.2f}",
            f"{row.bf16_ratio:.2f}",
            style="" if row.ratio >= 1 else "red",
        )
    return table
