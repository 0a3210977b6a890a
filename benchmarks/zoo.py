"""Models that others wrote: what becomes int8, how many programs each is, how near and how fast they are.

python benchmarks/zoo.py [--out RESULTS.json] [--only REGEX] [--threads N ...] [--quick] [--fresh]

A row is a model of `peers/real_models.py`, quantized static on four random examples and called with one. Rows are
written as they come and a second run goes on where the first stopped. A model whose library is missing, or that does
not get as far as the end, has a row with the reason. dB are means over eight other examples.
"""

from __future__ import annotations

import argparse
import gc
import re
import signal
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from peers import harness
from peers.contenders import Contender
from peers.real_models import RealModel, real_models, settled
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import qkernels as qk
from qkernels.graph.program import TorchProgram
from qkernels.modules.calling import Call, example_call, first_line
from qkernels.modules.outputs import output_sqnrs
from qkernels.utils.progress import progress

FLOAT, LAYERS, COMPILED = "float", "layer by layer", "compiled"
FORMS = tuple(
    Contender(name, package, lambda calls, name: calls[name])
    for name, package in ((FLOAT, "torch"), (LAYERS, "qkernels"), (COMPILED, "qkernels"))
)
LIMIT = 180  # seconds for a model, quantized, compiled twice and timed
EXAMPLES = 8  # for dB, of which one's may be 8 higher than the next one's
Row = dict[str, Any]


def run(arguments: argparse.Namespace) -> None:
    """The rows that the results do not hold yet."""
    rows = [
        (m, n)
        for n in arguments.threads
        for m in real_models()
        if re.search(arguments.only, m.name)
    ]
    if not rows:
        sys.exit(f"no model matches {arguments.only!r}; leave --only out to see all")
    results = harness.load(arguments, FORMS)
    harness.save(arguments.out, results)
    done = {(row["model"], row["threads"]) for row in results["rows"]}
    with progress("models", len(rows)) as advance:
        for model, threads in rows:
            if (model.name, threads) not in done:
                harness.use_threads(threads)
                results["rows"].append(measured(model, threads, arguments.quick))
                harness.save(arguments.out, results)
                print(summary(results["rows"][-1]), flush=True)
                gc.collect()
            advance(1, model.name)


class TookTooLong(BaseException):
    """No Exception, so that nobody on the way takes it for a reason of his own."""


def measured(model: RealModel, threads: int, quick: bool) -> Row:
    """The row of a model; ``failed`` is the sentence of the first step that it did not survive."""
    row: Row = {"model": model.name, "package": model.package, "threads": threads, "failed": ""}
    signal.signal(signal.SIGALRM, _stop)
    signal.alarm(LIMIT)
    try:
        row["us"] = _times(_forms(model, row), 0.1 if quick else 0.5)
    except TookTooLong:
        row["failed"] = f"took more than {LIMIT} seconds"
    except Exception as error:  # this is what the table is for
        row["failed"] = f"{type(error).__name__}: {first_line(error)}"
    finally:
        signal.alarm(0)
    return row


def _stop(*_: Any) -> None:
    raise TookTooLong


def _forms(model: RealModel, row: Row) -> dict[str, tuple[nn.Module, Call]]:
    """The model in float, int8 layer by layer and compiled, each with its call; the row gets what they are like."""
    random = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    calibration, inputs = model.inputs(4, random), model.inputs(1, random)
    call = example_call(inputs)
    net = settled(model.build(), [example_call(calibration)])
    int8 = _timed(row, "quantize_s", lambda: qk.quantize(net, "static", [calibration]))
    report = qk.report(int8, qk.QuantReport)
    row["layers"], row["int8_layers"] = len(report.layers), len(report.converted)
    row["skipped"] = sorted({layer.reason for layer in report.skipped})
    examples = [example_call(model.inputs(1, random)) for _ in range(EXAMPLES)]
    with torch.inference_mode():
        answers = [example.run(net) for example in examples]
    row["layers_db"] = _mean_db(int8, examples, answers)
    row["exact_db"] = _exact_db(int8, inputs)
    compiled = _timed(row, "compile_s", lambda: qk.compile(int8, inputs))
    row["compiled_db"] = _mean_db(compiled, examples, answers)
    row["programs"] = sum(isinstance(m, TorchProgram) for m in compiled.modules())
    row["is_one"] = compiled.program is not None
    row["left"] = list(compiled.report.unfused)
    row["uncaptured"] = compiled.report.uncaptured
    fast_float = (_channels_last(net), Call(*map(_channels_last, (call.args, call.kwargs))))
    return {FLOAT: fast_float, LAYERS: (int8, call), COMPILED: (compiled, call)}


def _exact_db(int8: nn.Module, inputs: Any) -> float | None:
    """How near the exact form is to the layers; None where it is refused, since bits of torch's steps differ."""
    try:
        return min(qk.compile(int8, inputs, exact=True).report.sqnr_db.values())
    except ValueError:
        return None


def _mean_db(model: nn.Module, examples: list[Call], answers: list[Any]) -> float:
    with torch.inference_mode():
        found = [least_db(y, x.run(model)) for x, y in zip(examples, answers, strict=True)]
    return sum(found) / len(found)


def least_db(expected: Any, got: Any) -> float:
    return min(output_sqnrs(expected, got).values())


def _times(forms: dict[str, tuple[nn.Module, Call]], seconds: float) -> dict[str, list[float]]:
    calls = {
        name: lambda net=net, call=call: net(*call.args, **call.kwargs)
        for name, (net, call) in forms.items()
    }
    with torch.inference_mode():
        return harness.microseconds(harness.take_turns(calls, FORMS, seconds))


def _timed(row: Row, name: str, step: Callable[[], nn.Module]) -> nn.Module:
    started = time.perf_counter()
    made = step()
    row[name] = round(time.perf_counter() - started, 2)
    return made


def _channels_last(value: Any) -> Any:
    """Weights and images as torch's convolutions are fastest on them."""
    if isinstance(value, nn.Module):
        has_volumes = any(p.dim() == 5 for p in value.parameters())
        return value if has_volumes else value.to(memory_format=torch.channels_last)
    images = lambda x: isinstance(x, Tensor) and x.dim() == 4  # noqa: E731
    return pytree.tree_map(
        lambda x: x.contiguous(memory_format=torch.channels_last) if images(x) else x, value
    )


def summary(row: Row) -> str:
    if row["failed"]:
        return f"{row['model']}: {row['failed']}"
    base, layers, ours = (row["us"][name][0] for name in (FLOAT, LAYERS, COMPILED))
    parts = "one program" if row["is_one"] else f"{row['programs']} programs"
    return (
        f"{row['model']}: {parts}, {len(row['left'])} steps left to torch, {row['layers_db']:.1f} dB layer by layer, "
        f"{row['compiled_db']:.1f} compiled, {ours / 1e3:.2f} ms, {base / ours:.2f}x float, {layers / ours:.2f}x layers"
    )


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    parser = harness.make_parser((__doc__ or "").splitlines()[0], "build/zoo.json")
    parser.set_defaults(threads=[1])
    harness.in_a_child(parser.parse_args(), run)
