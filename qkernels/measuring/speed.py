"""How fast a model answers in every form that it can be deployed in."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from qkernels.graph import compile
from qkernels.measuring.machine import torch_threads
from qkernels.measuring.timing import Timing, time_in_turns
from qkernels.nn import QuantModule
from qkernels.program import Program
from qkernels.quantization import fold_batch_norm_
from qkernels.utils.progress import progress as progress_bar

Form = Literal["eager", "compiled", "program"]
MEANING: dict[Form, str] = {
    "eager": "torch calls it layer by layer",
    "compiled": "qkernels.compile, called from torch",
    "program": "the saved program on NumPy arrays, without torch",
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}
Key = tuple[str, Form, str]  # name of a model, form, memory layout
Prepare = Callable[[Tensor, int], Callable[[], object]]  # images, threads -> a call to time


@dataclass(frozen=True)
class Speed:
    """Times of one form with `threads` threads: milliseconds for one image, and images a second at `batch`.

    `layouts` are the memory layouts that were faster for one image and for the batch.
    """

    form: Form
    threads: int
    p50_ms: float
    p95_ms: float
    images_per_second: float
    batch: int
    layouts: tuple[str, str]

    @classmethod
    def of(
        cls,
        form: Form,
        threads: int,
        batch: int,
        single: Mapping[str, Timing],
        bulk: Mapping[str, Timing],
    ) -> Speed:
        """The faster memory layout's times, of one image and of `batch`."""
        one, many = (min(times, key=lambda x, t=times: t[x].median) for times in (single, bulk))  # type: ignore[misc]
        return cls(
            form,
            threads,
            p50_ms=single[one].median * 1e3,
            p95_ms=single[one].percentile(95) * 1e3,
            images_per_second=batch / bulk[many].median,
            batch=batch,
            layouts=(one, many),
        )


@dataclass(frozen=True)
class Speeds:
    """All forms of one model in the order of `MEANING`, each with one thread and then with all."""

    every: tuple[Speed, ...]

    @property
    def forms(self) -> list[Form]:
        """The forms that the model has."""
        return list(dict.fromkeys(speed.form for speed in self.every))

    @property
    def form(self) -> Form:
        """The form to deploy: the last that the model has."""
        return self.every[-1].form

    @property
    def one_thread(self) -> Speed:
        """The form to deploy, with one thread."""
        return self.of(self.form)[0]

    @property
    def all_threads(self) -> Speed:
        """The form to deploy, with all threads."""
        return self.every[-1]

    def of(self, form: Form) -> list[Speed]:
        """The times of a form by rising threads; an empty list if the model does not have it."""
        return [speed for speed in self.every if speed.form == form]


def measure_speed(
    models: Mapping[str, nn.Module],
    image_shape: tuple[int, int, int],
    *,
    batch: int = 64,
    seconds: float = 0.5,
    rounds: int = 8,
    progress: bool = False,
) -> dict[str, Speeds]:
    """Time models by name in turns on random images, with one thread and with torch's current count.

    A float model is timed as torch calls it, with its batch norms folded as int8 ones have them, so that int8 alone
    makes the difference. A model with int8 layers is also timed compiled, bit for bit the same, and as a program.
    Each form takes about `seconds` for one image and as long for a batch, per memory layout and thread count; the
    faster layout counts.
    """
    example, now = torch.randn(2, *image_shape), torch.get_num_threads()
    calls: dict[Key, Prepare] = {
        (name, form, layout): prepare
        for name, model in models.items()
        for form, layout, prepare in _forms(model, example)
    }
    times: dict[tuple[int, int], dict[Key, Timing]] = {}
    counts = sorted({1, now})
    with progress_bar("timing", 2 * len(counts) * rounds, enabled=progress) as advance:
        for threads in counts:
            for size in (1, batch):
                images = torch.randn(size, *image_shape)
                ready = {key: prepare(images, threads) for key, prepare in calls.items()}
                with torch_threads(threads), torch.inference_mode():
                    times[threads, size] = time_in_turns(
                        ready, seconds=seconds, rounds=rounds, after_round=advance
                    )
    forms = {name: dict.fromkeys(form for n, form, _ in calls if n == name) for name in models}

    def layouts(name: str, form: Form, threads: int, size: int) -> dict[str, Timing]:
        timed = times[threads, size]
        return {layout: t for (n, f, layout), t in timed.items() if (n, f) == (name, form)}

    return {
        name: Speeds(
            tuple(
                Speed.of(
                    form, threads, batch, *(layouts(name, form, threads, n) for n in (1, batch))
                )
                for form in forms[name]
                for threads in counts
            )
        )
        for name in models
    }


def deployed(model: nn.Module, example: Tensor) -> tuple[Form, Prepare]:
    """The form to deploy and what prepares a call of it, for images as `example` [N, ...] and so many threads."""
    form, _, prepare = [x for x in _forms(model, example) if x[1] == "contiguous"][-1]
    return form, prepare


def _forms(model: nn.Module, example: Tensor) -> Iterator[tuple[Form, str, Prepare]]:
    """(form, memory layout, what prepares a call) of everything that the model can run as."""
    model = fold_batch_norm_(copy.deepcopy(model).eval(), example)
    for layout, kind in LAYOUTS.items():
        placed = copy.deepcopy(model).to(memory_format=kind)  # type: ignore[call-overload]
        yield "eager", layout, partial(_torch_call, placed, kind)
    if not any(isinstance(module, QuantModule) for module in model.modules()):
        return
    try:
        chained = compile(model, example, exact=True)
    except ValueError:  # compile refuses the model: layer by layer is all there is
        return
    for layout, kind in LAYOUTS.items():
        yield "compiled", layout, partial(_torch_call, chained, kind)
    if chained.program is not None:
        yield "program", "contiguous", partial(_program_call, chained.program.program)


def _torch_call(
    model: nn.Module, kind: torch.memory_format, images: Tensor, threads: int
) -> Callable[[], object]:
    return partial(model, images.contiguous(memory_format=kind))


def _program_call(program: Program, images: Tensor, threads: int) -> Callable[[], object]:
    return partial(Program(program.data, threads), images.numpy())
