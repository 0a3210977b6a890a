"""The command line: each command is a thin front of functions that Python can call as well."""

from __future__ import annotations

import json
import os
import shlex
import sys
import textwrap
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from pydantic import ValidationError
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn

import qkernels
import qkernels._core as kernel_core
from qkernels import data as datasets
from qkernels import models, recovery
from qkernels import prune as pruning
from qkernels.advise import advise as run_advise
from qkernels.bench import BenchRow, bench_results, geometric_means, run_bench
from qkernels.cli_flags import flags_of, given
from qkernels.data import ImageData
from qkernels.data.extras import require
from qkernels.distill import CachedTeacher, TrainConfig, train
from qkernels.evaluate import evaluate as evaluate_model
from qkernels.export import export_onnx
from qkernels.html_report import findings, next_commands, results_table, write_report
from qkernels.input_size import image_size, parse_size
from qkernels.machine import describe_cuda, describe_machine
from qkernels.measure import count_macs
from qkernels.pipeline import (
    RECIPES,
    PipelineConfig,
    calibration_batches,
    create_model,
    describe_architecture,
    describe_data,
    run_pipeline,
)
from qkernels.program import Program
from qkernels.quantization import CheckpointError, QuantConfig, read_metadata
from qkernels.speed import MEANING, measure_speed

BENCH_COLUMNS = 122  # of the terminal; a narrower one wraps lines, but no figure is cut
USER_ERRORS = (ValueError, OSError, ImportError, RuntimeError, ArithmeticError)

app = typer.Typer(
    help="int8 layers for PyTorch, and the workflow that gets a trained teacher into them.",
    pretty_exceptions_enable=False,
    add_completion=False,
)

Data = Annotated[str, typer.Option(help=f"Data set: {', '.join(datasets.available())}.")]
Root = Annotated[Path | None, typer.Option(help="Folder of the data, else $QKERNELS_DATA.")]
Width = Annotated[int | None, typer.Option(help="Width of the model, else as published.", min=1)]


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit; what a user can mend is one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"] or ["--help"]
    try:
        code = app(words, standalone_mode=False)
    except typer.Abort:
        sys.exit("qkernels: stopped; the same command goes on from the last whole epoch")
    except Exception as error:
        usage = hasattr(error, "format_message")  # a flag that typer does not know or take
        if debug or not (usage or isinstance(error, USER_ERRORS)):
            raise
        print(f"qkernels: {_sentence(error)}", file=sys.stderr)
        sys.exit(2)
    sys.exit(code or 0)


def _sentence(error: Exception) -> str:
    """What went wrong, on one line."""
    if isinstance(error, ValidationError):
        parts = [
            f"{_flag(e['loc'][0])}={e['input']!r}: {e['msg']}" for e in error.errors() if e["loc"]
        ]
        return "; ".join(parts) or error.errors()[0]["msg"].removeprefix("Value error, ")
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    text = error.format_message() if hasattr(error, "format_message") else str(error)
    return " ".join(text.split()) or type(error).__name__


def _flag(field: object) -> str:
    return "--" + str(field).replace("_", "-")


def _version(asked: bool) -> None:
    if asked:
        print(f"qkernels {qkernels.__version__}")
        raise typer.Exit


@app.callback()
def _common(
    threads: Annotated[
        int | None, typer.Option(help="Threads of torch and of the kernels.", min=1)
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from.")] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Say which qkernels this is.", callback=_version, is_eager=True
        ),
    ] = False,
) -> None:
    if threads:
        torch.set_num_threads(threads)


@app.command()
def info() -> None:
    """Say what this machine can run, and what will run."""
    facts, limit = describe_machine(), describe_machine()["isa_limit"]
    features = [name for name, present in kernel_core.cpu_features().items() if present]
    why = f"QKERNELS_MAX_ISA={limit}" if limit else "the best this machine has"
    _print_pairs(
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
    _print(table)


def _shown_default(field: str) -> str:
    """A default of the pipeline, and that of a recipe where it is another."""
    value = PipelineConfig.model_fields[field].default
    shown = [] if value is None else [str(value)]
    shown += [f"{name}: {recipe[field]}" for name, recipe in RECIPES.items() if field in recipe]
    return "digits" if field == "data" else "; ".join(shown)


@app.command()
@flags_of(PipelineConfig, help_of={}, shown=_shown_default)
def pipeline(**flags: Any) -> None:
    """Teacher, student alone and distilled, int8 student: trained, measured, reported.

    Without flags: scikit-learn's handwritten digits, offline, well below a minute. A run that was
    stopped goes on; a finished one is only measured again.
    """
    config = PipelineConfig.for_data(**given(flags))
    result = run_pipeline(config, say=_print, progress=True)
    _print(results_table(result))
    for sentence in findings(result):
        _print(textwrap.fill(sentence, 79))
    page = write_report(result, config.run / "report")
    _print("\n" + "\n".join(next_commands(result, page)))


TRAIN_HELP = {
    "feature_weight": "Weight of a loss on features, else as published.",
    "until": "Stop at this validation accuracy, 0..1.",
    "patience": "Stop after so many validations without a new best.",
    "momentum": "Momentum of sgd.",
    "label_smoothing": "Share of each label spread over all classes.",
    "clip_grad_norm": "Longest gradient.",
    "eval_every": "Epochs between two validations.",
    "checkpoint_every": "Epochs between two checkpoints.",
} | {name: field.description or "" for name, field in PipelineConfig.model_fields.items()}


@app.command()
@flags_of(
    TrainConfig, help_of=TRAIN_HELP, shown=lambda f: str(TrainConfig.model_fields[f].default or "")
)
def distill(
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    data: Data = "digits",
    data_root: Root = None,
    student: Annotated[str, typer.Option(help="Model to train.")] = "resnet14",
    student_width: Width = None,
    teacher: Annotated[str | None, typer.Option(help="Model of the teacher, if any.")] = None,
    teacher_width: Width = None,
    teacher_weights: Annotated[
        Path | None, typer.Option(help="safetensors file of the teacher.")
    ] = None,
    teacher_cache: Annotated[
        Path | None, typer.Option(help="File that keeps the teacher's answers for later runs.")
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on where a stopped run was.")] = True,
    **flags: Any,
) -> None:
    """Train a model, and learn from a --teacher if there is one, by --loss."""
    if (teacher is None) != (teacher_weights is None):
        raise ValueError("--teacher and --teacher-weights go together: give both or neither")
    if teacher_cache is not None and teacher is None:
        raise ValueError("--teacher-cache keeps the answers of a --teacher: give one")
    config, images = TrainConfig(**given(flags)), datasets.load(data, data_root)
    guide = None
    if teacher is not None and teacher_weights is not None:
        guide = models.load_weights(create_model(teacher, images, teacher_width), teacher_weights)
        guide = guide if teacher_cache is None else CachedTeacher(guide, teacher_cache)
    torch.manual_seed(config.seed)
    model = create_model(student, images, student_width)
    train(model, images, config, teacher=guide, run_dir=run, resume=resume)
    _print(f"test accuracy {evaluate_model(model, images, progress=True)}")
    _print(f"wrote {run / 'model.safetensors'}")


@app.command()
def prune(
    weights: Annotated[Path, typer.Argument(help="safetensors file of the float model.")],
    out: Annotated[Path, typer.Argument(help="float checkpoint to write, for quantize.")],
    model: Annotated[str, typer.Option(help="Which model the weights are of.")],
    run: Annotated[Path, typer.Option(help="Folder of the run.")],
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    drop: Annotated[
        Literal["channels", "blocks"], typer.Option(help="What goes: blocks save calls as well.")
    ] = "channels",
    share: Annotated[float, typer.Option(help="Share of the multiply-adds to drop.")] = 0.4,
    multiple: Annotated[
        int, typer.Option(help="Channels left are multiples of this.", min=1)
    ] = pruning.PANEL,
    epochs: Annotated[int, typer.Option(help="Epochs of training afterwards.")] = 10,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 0.05,
) -> None:
    """Drop channels or blocks, then train on with the unpruned model as the teacher; stopped, it goes on."""
    _check_writable(out)
    dataset = datasets.load(data, data_root)
    full = models.load_weights(create_model(model, dataset, width), weights).eval()
    example = torch.zeros(1, *dataset.image_shape)
    sample = dataset.batches("train", 64, shuffle=True).head(1024)
    macs = count_macs(full, dataset.image_shape)

    def smaller(net: nn.Module, amount: float) -> nn.Module:
        left = int((1 - amount) * macs)
        if drop == "blocks":
            losses = pruning.block_losses(net, pruning.find_blocks(net, example), sample)
            return pruning.drop_blocks(net, example, losses, macs=left)
        scores = pruning.magnitude(pruning.weights(net))
        return pruning.prune_channels(net, example, scores, macs=left, multiple=multiple)

    config = TrainConfig.model_validate({"epochs": epochs, "lr": lr})
    chosen = "blocks by loss" if drop == "blocks" else f"channels by magnitude, multiple={multiple}"
    net = pruning.prune_gradually(
        full, dataset, config, smaller,
        final=share, steps=1, run_dir=run, description=chosen, teacher=full,
    )  # fmt: skip
    architecture = describe_architecture(model, dataset, width)
    architecture["kwargs"]["channels"] = models.changes(models.sizes(full), net)
    qkernels.save(net, out, architecture=architecture)
    _print(f"multiply-adds {macs:,} -> {count_macs(net, dataset.image_shape):,}")
    _print(f"test accuracy {evaluate_model(net, dataset)}, before {evaluate_model(full, dataset)}")
    _print(f"wrote {out}: {_kilobytes(out)}, before {_kilobytes(weights)}")


@app.command()
def quantize(
    weights: Annotated[Path, typer.Argument(help="Float weights, or a pruned checkpoint.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint to write.")],
    model: Annotated[str | None, typer.Option(help="Which model float weights are of.")] = None,
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    activation: Annotated[
        Literal["static", "dynamic", "weight_only"], typer.Option(help="Where ranges come from.")
    ] = "static",
    weight: Annotated[
        Literal["per_channel", "per_tensor"], typer.Option(help="One scale for what.")
    ] = "per_channel",
    observer: Annotated[
        str, typer.Option(help="How static ranges are found: minmax, percentile, mse, ...")
    ] = "percentile",
    equalize: Annotated[
        bool, typer.Option("--equalize", help="First give layers in a row like channel ranges.")
    ] = False,
    correct_bias: Annotated[
        bool, typer.Option("--correct-bias", help="Then restore the float model's channel means.")
    ] = False,
    images: Annotated[int, typer.Option(help="Training images to calibrate on.", min=1)] = 512,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.", min=0)] = 0,
) -> None:
    """Turn trained float weights into an int8 checkpoint that needs nothing else to be loaded."""
    config = QuantConfig(activation=activation, weight=weight, observer=observer)
    dataset = datasets.load(data, data_root)
    net, architecture = _open(weights, dataset, model, width)
    needs_data = activation == "static" or correct_bias
    batches = list(calibration_batches(dataset, images, seed)) if needs_data else None
    if equalize:
        net = recovery.equalize(net)
        _print(str(qkernels.report(net)))
    exact = net if correct_bias else None
    net = (qkernels.quantize_ if exact is None else qkernels.quantize)(net, config, batches)
    report = qkernels.report(net)
    if exact is not None and batches is not None:
        shifts = qkernels.report(recovery.correct_bias_(net, exact, batches)).shifts
        _print(f"biases of {len(shifts)} layers corrected, by up to {max(shifts.values()):.3g}")
    qkernels.save(net, out, architecture=architecture, extra=describe_data(dataset))
    _print(report)
    _print(f"wrote {out}: {_kilobytes(out)}, before {_kilobytes(weights)}")


@app.command()
def evaluate(
    checkpoint: Annotated[Path, typer.Argument(help="An int8 checkpoint, or float weights.")],
    model: Annotated[str | None, typer.Option(help="Which model float weights are of.")] = None,
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which images.")] = "test",
) -> None:
    """Accuracy with its 95 % interval, size and latency of a checkpoint."""
    images = datasets.load(data, data_root)
    net, _ = _open(checkpoint, images, model, width)
    accuracy = evaluate_model(net, images, split, progress=True)
    speeds = measure_speed({"": net}, images.image_shape, progress=True)[""]
    _print_pairs({"accuracy": f"{accuracy} {split} images", "size": _kilobytes(checkpoint)})
    table = Table("runs as", "threads", "ms, p50", "p95", "images/s", "what that is")
    for speed in speeds.every:
        figures = f"{speed.p50_ms:.3g}", f"{speed.p95_ms:.3g}", f"{speed.images_per_second:,.0f}"
        table.add_row(speed.form, str(speed.threads), *figures, MEANING[speed.form])
    _print(table)
    _print(f"Deploy the {speeds.form}; images/s in batches of {speeds.all_threads.batch}.")


@app.command()
def export(
    model: Annotated[Path, typer.Argument(help="An int8 checkpoint for ONNX, else a program.")],
    out: Annotated[Path, typer.Argument(help="ONNX file, or folder of a Triton model, to write.")],
    to: Annotated[
        Literal["onnx", "triton"], typer.Option(help="QDQ form; Python backend, without torch.")
    ] = "onnx",
    size: Annotated[
        list[str] | None,
        typer.Option(help="Size of an input, such as 1,3,224,224; once an input, in order."),
    ] = None,
) -> None:
    """Write a model for another runtime, its batch free."""
    sizes = [parse_size(text) for text in size or ()]
    if to == "triton":
        require("starlette", "serve")
        from qkernels.serve.triton import write_triton_model

        written = write_triton_model(model, out, sizes)
        _print(f"wrote {out}: model {out.name!r}, batches of up to {written.max_batch}")
        return
    examples = tuple(
        torch.zeros(size) for size in sizes or [image_size(model, read_metadata(model))]
    )
    export_onnx(qkernels.load(model), examples, out)
    _print(f"wrote {out}: {_kilobytes(out)}, before {_kilobytes(model)}")


def _open(
    path: Path, images: ImageData, model: str | None, width: int | None
) -> tuple[nn.Module, dict[str, Any]]:
    """(model, architecture). A checkpoint rebuilds itself; float weights need the name of their model."""
    try:
        architecture = read_metadata(path)["architecture"]
    except CheckpointError as error:
        if model is None:
            raise ValueError(f"{error} (if these are float weights, name their --model)") from error
        net = models.load_weights(create_model(model, images, width), path)
        return net, describe_architecture(model, images, width)
    if model is not None or width is not None:
        flag = "--model" if model is not None else "--width"
        raise ValueError(f"{path} names its model itself: leave {flag} out")
    return qkernels.load(path), architecture


@app.command()
def advise(
    weights: Annotated[Path, typer.Argument(help="safetensors file of the float model.")],
    out: Annotated[Path, typer.Argument(help="int8 checkpoint of the best combination to write.")],
    model: Annotated[str, typer.Option(help="Which model the weights are of.")],
    floor: Annotated[str, typer.Option(help="Least accuracy, such as top1=91 (per cent).")],
    run: Annotated[Path, typer.Option(help="Folder of the trainings.")],
    latency: Annotated[
        str | None, typer.Option(help="Most time for one image, such as 2ms; else the fastest.")
    ] = None,
    students: Annotated[str, typer.Option(help="Smaller models to distil into: a,b.")] = "",
    width: Width = None,
    data: Data = "digits",
    data_root: Root = None,
    epochs: Annotated[int, typer.Option(help="Epochs of one training.", min=1)] = 10,
    lr: Annotated[float, typer.Option(help="Its learning rate.")] = 0.05,
    seed: Annotated[int, typer.Option(help="Seed of students, calibration and training.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Picture of the frontier to draw.")] = None,
) -> None:
    """Try distilling, pruning and quantizing on a model; keep what pays. Stopped, it goes on."""
    _check_writable(out, plot)
    dataset = datasets.load(data, data_root)
    net = models.load_weights(create_model(model, dataset, width), weights).eval()
    names = [name for name in students.split(",") if name]
    torch.manual_seed(seed)
    advice = run_advise(
        net,
        dataset,
        floor=_share(floor),
        latency_ms=None if latency is None else _milliseconds(latency),
        run_dir=run,
        config=TrainConfig.model_validate({"epochs": epochs, "lr": lr, "seed": seed}),
        students={name: create_model(name, dataset, width) for name in names},
        seed=seed,
    )
    print(advice)
    best = advice.best
    architecture = describe_architecture(best.student or model, dataset, width)
    if best.channels:
        architecture["kwargs"]["channels"] = best.channels
    qkernels.save(best.model, out, architecture=architecture, extra=describe_data(dataset))
    _print(f"wrote {out}: {_kilobytes(out)}, before {_kilobytes(weights)}")
    if plot is not None:
        advice.plot(plot)
        _print(f"wrote {plot}")


def _check_writable(*files: Path | None) -> None:
    """Named before the work, not after it: a file that could not be written."""
    for file in filter(None, files):
        if file.is_dir():
            raise IsADirectoryError(f"{file}: is a folder, name a file to write")
        if not file.parent.is_dir():
            raise FileNotFoundError(f"{file}: there is no folder {file.parent} to write it to")


def _share(text: str) -> float:
    """Of "top1=91"."""
    name, _, percent = text.rpartition("=")
    try:
        share = float(percent) / 100
    except ValueError:
        share = -1.0
    if name not in ("", "top1") or not 0 <= share <= 1:
        raise ValueError(f"floor {text!r} must be per cent of top-1, such as top1=91")
    return share


def _milliseconds(text: str) -> float:
    """Of "2ms" or "0.5ms"."""
    try:
        return float(text.removesuffix("ms"))
    except ValueError:
        raise ValueError(f"latency {text!r} must be milliseconds, such as 2ms") from None


Size = Annotated[
    str, typer.Option(help="Size of one input, such as 1,3,224,224; its batch is only an example.")
]


@app.command(name="compile")
def compile_(
    checkpoint: Annotated[Path, typer.Argument(help="An int8 checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Program to write; it runs without torch.")],
    size: Size,
    exact: Annotated[
        bool, typer.Option("--exact/--fast", help="Bit for bit, or with int8 between more steps.")
    ] = True,
    max_batch: Annotated[int | None, typer.Option(help="Refuse larger batches.", min=1)] = None,
) -> None:
    """Chain the layers of an int8 checkpoint into one program file."""
    example = torch.zeros(parse_size(size))
    model = qkernels.compile(qkernels.load(checkpoint), example, exact=exact, max_batch=max_batch)
    _print(model.report)
    model.save(out, extra=read_metadata(checkpoint)["extra"])
    _print(f"wrote {out}: {_kilobytes(out)}")


@app.command()
def profile(
    file: Annotated[Path, typer.Argument(help="A program, or an int8 checkpoint to chain first.")],
    size: Size,
    threads: Annotated[int, typer.Option(help="Threads of a call.", min=1)] = 1,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: .svg, .png, .pdf.")] = None,
) -> None:
    """Where the time goes: each step's, the bytes that it moves, its share of the peak."""
    x = torch.zeros(parse_size(size))
    torch.set_num_threads(threads)
    if file.suffix == ".safetensors":
        steps = qkernels.compile(qkernels.load(file), x).profile(x)
    else:
        steps = Program.load(file, threads).profile(x.numpy())
    print(steps)
    if plot is not None:
        steps.plot(plot)
        _print(f"wrote {plot}")


@app.command(
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def serve(context: typer.Context) -> None:
    """Serve a program, or an int8 checkpoint, over HTTP; see qkernels serve --help."""
    require("uvicorn", "serve")
    # This process holds torch; the one that takes its place loads it for a checkpoint only.
    os.execv(sys.executable, [sys.executable, "-m", "qkernels.serve", *context.args])


@app.command()
def bench(
    only: Annotated[str, typer.Option(help="Cases whose kind and name hold this text.")] = "",
    threads: Annotated[list[int] | None, typer.Option(help="May be given twice.")] = None,
    quick: Annotated[bool, typer.Option(help="A tenth of the time, and less sure.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write it here.")] = None,
) -> None:
    """Time int8 layers against torch's float32 and bfloat16 ones, in turns, in one process."""
    _check_writable(json_file)
    rows = run_bench(only, threads=threads or [torch.get_num_threads()], quick=quick)
    Console(width=max(Console().width, BENCH_COLUMNS)).print(_bench_table(rows))
    means = Table("kind", "int8 form", "threads", "x fp32, geometric mean")
    for (kind, form, count), ratio in geometric_means(rows).items():
        means.add_row(kind, form, str(count), f"{ratio:.2f}")
    _print(means)
    slower = sum(row.ratio < 1 for row in rows)
    _print(f"▼ int8 is slower than float32 in {slower} of {len(rows)} rows")
    if json_file:
        command = shlex.join(["qkernels", *sys.argv[1:]])
        json_file.write_text(json.dumps(bench_results(rows, command), indent=1) + "\n")
        _print(f"wrote {json_file}")


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


def _print(what: object) -> None:
    Console(highlight=False, soft_wrap=isinstance(what, str)).print(what)


def _print_pairs(pairs: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    for name, value in pairs.items():
        table.add_row(name, value)
    _print(table)


def _kilobytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e3:,.1f} KB"
