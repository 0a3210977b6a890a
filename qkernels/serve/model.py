"""A model as the server runs it, from a program or an int8 checkpoint. Only a checkpoint imports torch."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkernels.image_input import KEY, ImageInput
from qkernels.input_size import Size, image_size
from qkernels.program import Program

Arrays = Sequence[NDArray[np.float32]]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Tensor:
    """An input or output of float32; ``size``: of one example, without the batch."""

    name: str
    size: Size


@dataclass(frozen=True)
class Model:
    """A model that has run. ``run`` takes arrays [N, *size], 1 <= N <= max_batch, from any thread.

    ``version``: the CRC-32 of its file, so that a version never means two models. ``image_input``: how a picture
    becomes an input, where the file says so.
    """

    version: str
    platform: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    run: Run
    image_input: ImageInput | None = None

    def run_together(self, requests: Sequence[Arrays]) -> list[Arrays]:
        """The answers of requests of any number of rows, from one call."""
        if len(requests) == 1:
            return [self.run(requests[0])]
        results = self.run([np.concatenate(column) for column in zip(*requests, strict=True)])
        ends = itertools.accumulate(len(inputs[0]) for inputs in requests)
        parts = itertools.starmap(slice, itertools.pairwise((0, *ends)))
        return [[y[rows] for y in results] for rows in parts]

    def check(self, inputs: Arrays) -> None:
        """Raises ValueError for arrays that ``run`` does not take."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the model takes {len(self.inputs)} input(s), not {len(inputs)}")
        for x, tensor in zip(inputs, self.inputs, strict=True):
            fits = x.dtype == np.float32 and x.shape[1:] == tensor.size
            if not (fits and 1 <= len(x) <= self.max_batch):
                needed = ", ".join(["N", *map(str, tensor.size)])
                raise ValueError(
                    f"input {tensor.name!r} is {x.dtype} {list(x.shape)}; float32 [{needed}] with N from 1 to "
                    f"{self.max_batch} is needed"
                )
        if len(rows := {len(x) for x in inputs}) != 1:
            raise ValueError(f"the inputs differ in their batch: {sorted(rows)}")


@dataclass(frozen=True)
class Opened:
    """A model that has not run yet."""

    version: str
    platform: str
    sizes: tuple[Size, ...]
    max_batch: int | None
    run: Run
    image_input: ImageInput | None = None

    def warm_up(self, max_batch: int) -> Model:
        """Run the smallest and the largest batch, so that the first request meets no first time.

        Raises ValueError where the file describes images or classes that are not the model's.
        """
        largest = min(max_batch, self.max_batch or max_batch)
        for rows in (largest, 1):
            results = self.run([np.zeros((rows, *size), np.float32) for size in self.sizes])
        outputs = [y.shape[1:] for y in results]
        return Model(
            self.version,
            self.platform,
            _named("input", self.sizes),
            _named("output", outputs),
            largest,
            self.run,
            self._image_input(outputs),
        )

    def _image_input(self, outputs: Sequence[Size]) -> ImageInput | None:
        """For the size that is served."""
        said = self.image_input
        if said is None:
            return None
        channels, *size = self.sizes[0]
        is_image = len(self.sizes) == 1 and len(size) == 2 and channels in (1, 3)
        same = channels == len(said.mean) == len(said.std)
        if not is_image or not same or [tuple(y) for y in outputs] != [(len(said.classes),)]:
            raise ValueError(
                f"{KEY} has {len(said.mean)} means, {len(said.std)} stds and {len(said.classes)} classes; "
                f"the model takes {self.sizes} and gives {outputs}"
            )
        height, width = size
        return replace(said, size=(height, width))


def open_model(path: Path, sizes: Sequence[Size], threads: int) -> Opened:
    """Read a program, or build an int8 checkpoint (.safetensors) and chain it.

    The file is copied, not mapped: whoever writes over it changes nothing here. Raises ValueError for a file that is
    neither, or for images whose size nobody has said.
    """
    data = np.fromfile(path, np.uint8)
    version = f"{zlib.crc32(data.data):08x}"
    if path.suffix == ".safetensors":
        return _checkpoint(path, version, sizes, threads)
    try:
        program = Program(data, threads)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return _program(program, path, version, sizes, program.extra)


def map_program(path: Path, sizes: Sequence[Size], threads: int) -> Opened:
    """A program that is mapped: processes of one machine that open it share its weights. The file may be replaced, as
    `Program.save` does, but not written over. Raises as `open_model`."""
    program = Program.load(path, threads)
    version = f"{zlib.crc32(program.data.data):08x}"
    return _program(program, path, version, sizes, program.extra)


def _program(
    program: Program, path: Path, version: str, sizes: Sequence[Size], extra: Mapping[str, Any]
) -> Opened:
    if "int64" in program.input_dtypes:
        raise ValueError(f"{path} takes int64 token ids; float32 inputs alone are served")
    image_input = _read_image_input(path, extra)
    sizes = sizes or _sizes(image_input)
    if not sizes:
        if any(axes > 2 for axes, _ in program.inputs):
            raise ValueError(f"{path} takes images of any size: give --size, such as 1,3,224,224")
        sizes = [(1, channels) for _, channels in program.inputs]

    def run(inputs: Arrays) -> Arrays:
        return _listed(program(*inputs))

    examples = tuple(size[1:] for size in sizes)
    return Opened(version, "qkernels_program", examples, program.max_batch, run, image_input)


def _checkpoint(path: Path, version: str, sizes: Sequence[Size], threads: int) -> Opened:
    import torch

    import qkernels
    from qkernels.quantization import read_metadata

    metadata = read_metadata(path)
    image_input = _read_image_input(path, metadata["extra"])
    sizes = sizes or _sizes(image_input) or [image_size(path, metadata)]
    torch.set_num_threads(threads)
    examples = tuple(torch.zeros(1, *size[1:]) for size in sizes)
    chained = qkernels.compile(qkernels.load(path), examples)
    if chained.program is not None:
        program = Program(chained.program.program.data, threads)
        return _program(program, path, version, sizes, metadata["extra"])

    def run(inputs: Arrays) -> Arrays:
        with torch.inference_mode():
            y = chained(*(torch.from_numpy(np.require(x, requirements="W")) for x in inputs))
        return [t.numpy() for t in _listed(y)]

    taken = tuple(size[1:] for size in sizes)
    return Opened(version, "qkernels_torch", taken, None, run, image_input)


def _read_image_input(path: Path, extra: Mapping[str, Any]) -> ImageInput | None:
    try:
        return msgspec.convert(extra.get(KEY), ImageInput | None)
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {KEY} is not right: {error}") from error


def _sizes(image_input: ImageInput | None) -> list[Size]:
    if image_input is None:
        return []
    return [(1, len(image_input.mean), *image_input.size)]


def _listed(results: Any) -> Any:
    return results if isinstance(results, (list, tuple)) else [results]


def _named(kind: str, sizes: Sequence[Size]) -> tuple[Tensor, ...]:
    names = [kind] if len(sizes) == 1 else [f"{kind}_{i}" for i in range(len(sizes))]
    return tuple(Tensor(name, tuple(size)) for name, size in zip(names, sizes, strict=True))
