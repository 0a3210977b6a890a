"""A data-free student with a budget: DFQ on CIFAR-10's official images, its curve kept, and read at any moment.

    python benchmarks/datafree_budget.py --run runs/datafree-budget           # train; killed, the same line goes on
    python benchmarks/datafree_budget.py --run runs/datafree-budget --curve   # only say how it stands

Teacher: the published ResNet-20. Student: a fresh ResNet-14, which sees no real image; the official test images of
the data folder are looked at after each epoch, to report, and choose nothing.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from qkernels import models
from qkernels.data import ImageData, load
from qkernels.data.paths import data_root
from qkernels.datafree import DFQ, Generator, ImageKind, write_sheet
from qkernels.distill import TrainConfig, train
from qkernels.evaluate import evaluate

STEPS, BATCH = 64, 128  # of an epoch
WEIGHTS = "models/cifar10_resnet20.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/datafree-budget"))
    parser.add_argument("--epochs", type=int, default=60, help=f"of {STEPS} batches of {BATCH}")
    parser.add_argument("--curve", action="store_true", help="say how the run stands, and stop")
    wanted = parser.parse_args()
    if not wanted.curve:
        fit(wanted.run, wanted.epochs)
    print(curve(wanted.run))


def fit(run: Path, epochs: int) -> None:
    real = load("cifar10-subset")
    teacher = models.load_weights(models.create("resnet20"), data_root() / WEIGHTS).eval()
    run.mkdir(parents=True, exist_ok=True)
    (run / "teacher.json").write_text(json.dumps({"accuracy": evaluate(teacher, real).accuracy}))
    kind = ImageKind.of(real)
    torch.manual_seed(0)
    student, objective = models.create("resnet14"), DFQ(teacher, Generator(kind, width=32))
    config = TrainConfig(
        epochs=epochs, batch_size=BATCH, optimizer="adamw", lr=2e-3, warmup_epochs=1,
        augment=False, channels_last=True,
    )  # fmt: skip
    train(student, _made(kind, real), config, objective=objective, run_dir=run / "training")
    write_sheet(objective.sample(100), run / "made.png")


def _made(kind: ImageKind, real: ImageData) -> ImageData:
    """The data of a run: as many placeholders as an epoch has images, and the real test images to look at."""
    made = kind.data(kind.placeholders(STEPS * BATCH))
    return replace(made, val=real.test, class_names=real.class_names)


def curve(run: Path) -> str:
    """The accuracy after each epoch as a Markdown table, and how far the last is behind the teacher."""
    lines = (run / "training/history.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    if not records:
        return "no epoch is finished yet"
    teacher = json.loads((run / "teacher.json").read_text())["accuracy"]
    rows = ["| epoch | images made | hours | test accuracy, % |", "| ---: | ---: | ---: | ---: |"]
    hours = 0.0
    for record in records:
        hours += record["seconds"] / 3600
        made = record["epoch"] * STEPS * BATCH
        rows.append(
            f"| {record['epoch']} | {made:,} | {hours:.2f} | {100 * record['val_accuracy']:.1f} |"
        )
    behind = 100 * (teacher - records[-1]["val_accuracy"])
    return "\n".join([*rows, f"\nteacher {teacher:.2%}; the student is {behind:.1f} points behind"])


if __name__ == "__main__":
    main()
