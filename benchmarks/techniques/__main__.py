"""Every technique on one student -> docs/techniques.md.

    QKERNELS_DATA=... python benchmarks/techniques [--only TEXT] [--epochs 6] [--seeds 1]

The folder needs `cifar10/jpeg.zip` and `models/cifar10_resnet20.safetensors`. Some two hours on two cores where two
processes share the rows (`--only`), each on one thread (`OMP_NUM_THREADS=1`). A row is run once; the same command goes
on where it was stopped, and a row that failed is tried again.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from techniques import experiment, table


def main() -> None:
    arguments = parse()
    out = vars(arguments).pop("out")
    only, table_only = (vars(arguments).pop(name) for name in ("only", "table_only"))
    plan = experiment.Plan(**vars(arguments))
    if not table_only:
        try:
            experiment.run(plan, only)
        except (
            ValueError,
            OSError,
        ) as error:  # of the plan or the data: those of a row are in its result
            sys.exit(f"techniques: {error}")
    table.write(plan, out, shlex.join(["python", "benchmarks/techniques", *shown(plan)]))
    print(f"wrote {out}")


def shown(plan: experiment.Plan) -> list[str]:
    """The flags that differ from the defaults."""
    defaults = vars(parse([]))
    return [
        f"--{name.replace('_', '-')}={value}"
        for name, value in vars(plan).items()
        if name != "run" and value != defaults[name]
    ]


def parse(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser("techniques", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name or heading holds this text")
    parser.add_argument("--epochs", type=int, default=6, help="of one training")
    parser.add_argument("--seeds", type=int, default=1, help="how often each row is run")
    parser.add_argument("--images", type=int, help="fewer training and test images, to try it out")
    parser.add_argument("--teacher", default="resnet20", help="published weights, fine-tuned first")
    parser.add_argument("--teacher-epochs", type=int, default=3)
    parser.add_argument("--student", default="resnet8")
    parser.add_argument("--run", type=Path, default=Path("runs/techniques"))
    parser.add_argument("--out", type=Path, default=Path("docs/techniques.md"))
    parser.add_argument("--table-only", action="store_true", help="run nothing, write the table")
    return parser.parse_args(words)


if __name__ == "__main__":
    main()
