"""A model as the server runs it, from a program or an int8 checkpoint. Only a checkpoint imports torch."""

from __future__ import annotations

import itertools
import timeit
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from qkernels.image_input import KEY, ImageInput
from qkernels.program import Program
from qkernels.utils.input_size import Size, image_size

Arrays = Sequence[NDArray[Any]]
Run = Callable[[Arrays], Arrays]


@dataclass(frozen=True)
class Tensor:
    """An input or output, of float32 or, of token ids and masks, int64.

    ``size``: of one example, without the batch. ``id_count``: ids are 0 .. id_count - 1; None: float32. ``free``: the
    axes of ``size`` along which an example may be smaller; the number of ids is one.
    """

    name: str
    size: Size
    id_count: int | None = None
    free: tuple[int, ...] = ()

    @property
    def datatype(self) -> str:
        """Its name in the Open Inference Protocol."""
        return "FP32" if self.id_count is None else "INT64"

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float32 if self.id_count is None else np.int64)

    @property
    def dims(self) -> list[int]:
        """The size as the protocol tells it, -1 where it is free."""
        return [-1 if axis in self.free else n for axis, n in enumerate(self.size)]

    def takes(self, shape: Sequence[int], max_batch: int) -> bool:
        """Whether it may have this shape [N, *size]."""
        rows, size = (shape[0] if shape else 0), tuple(shape[1:])
        return 1 <= rows <= max_batch and (size == self.size or self._is_smaller(size))

    def _is_smaller(self, size: Size) -> bool:
        """Along its free axes, and not without anything."""
        if len(size) != len(self.size):
            return False
        pairs = enumerate(zip(size, self.size, strict=True))
        return all(n == most or (axis in self.free and 1 <= n < most) for axis, (n, most) in pairs)

    def needed(self, max_batch: int) -> str:
        """The shapes that it takes, in words."""
        size = ", ".join(["N", *("T" if n < 0 else str(n) for n in self.dims)])
        longest = "".join(f" and T from 1 to {self.size[axis]}" for axis in self.free)
        return f"[{size}] with N from 1 to {max_batch}{longest}"

    def wrong_id(self, x: NDArray[Any]) -> str:
        """A sentence about the first id of int64 [N, T] that is none; empty where all are."""
        if self.id_count is None or (x.min() >= 0 and x.max() < self.id_count):
            return ""
        row, column = np.argwhere((x < 0) | (x >= self.id_count))[0].tolist()
        return (
            f"input {self.name!r} holds the id {x[row, column]} at [{row}, {column}]; "
            f"ids from 0 to {self.id_count - 1} are taken"
        )


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
        """The answers of requests of any number of rows, from one call for all that are of the same sizes."""
        alike: dict[tuple[Size, ...], list[int]] = {}
        for i, inputs in enumerate(requests):
            alike.setdefault(tuple(x.shape[1:] for x in inputs), []).append(i)
        if len(alike) == 1:
            return self._run_alike(requests)
        answers = dict[int, Arrays]()
        for places in alike.values():
            found = self._run_alike([requests[i] for i in places])
            answers |= zip(places, found, strict=True)
        return [answers[i] for i in range(len(requests))]

    def _run_alike(self, requests: Sequence[Arrays]) -> list[Arrays]:
        if len(requests) == 1:
            return [self.run(requests[0])]
        results = self.run([np.concatenate(column) for column in zip(*requests, strict=True)])
        ends = itertools.accumulate(len(inputs[0]) for inputs in requests)
        parts = itertools.starmap(slice, itertools.pairwise((0, *ends)))
        return [[y[rows] for y in results] for rows in parts]

    def batch_gain(self) -> float:
        """How many times cheaper a row is in the largest batch than alone, by the best of three calls each."""
        alone = [np.zeros((1, *tensor.size), tensor.dtype) for tensor in self.inputs]

        def seconds(rows: int) -> float:
            return min(timeit.repeat(lambda: self.run_together([alone] * rows), number=1, repeat=3))

        return self.max_batch * seconds(1) / seconds(self.max_batch)

    def check(self, inputs: Arrays) -> None:
        """Raises ValueError for arrays that ``run`` does not take."""
        if len(inputs) != len(self.inputs):
            raise ValueError(f"the model takes {len(self.inputs)} input(s), not {len(inputs)}")
        for x, tensor in zip(inputs, self.inputs, strict=True):
            if x.dtype != tensor.dtype or not tensor.takes(x.shape, self.max_batch):
                raise ValueError(
                    f"input {tensor.name!r} is {x.dtype} {list(x.shape)}; {tensor.dtype} "
                    f"{tensor.needed(self.max_batch)} is needed"
                )
            if wrong := tensor.wrong_id(x):
                raise ValueError(wrong)
        if differ := self.differ(inputs):
            raise ValueError(differ)

    def differ(self, inputs: Arrays) -> str:
        """A sentence about inputs that do not belong together; empty for those that do."""
        rows = [len(x) for x in inputs]
        if len(set(rows)) != 1:
            return f"the inputs differ in their batch: {rows}"
        lengths = [x.shape[1] for x, t in zip(inputs, self.inputs, strict=True) if t.free]
        if len(set(lengths)) > 1:
            return f"the inputs differ in their number of ids: {lengths}"
        return ""


@dataclass(frozen=True)
class Opened:
    """A model that has not run yet."""

    version: str
    platform: str
    inputs: tuple[Tensor, ...]
    max_batch: int | None
    run: Run
    image_input: ImageInput | None = None

    def warm_up(self, max_batch: int) -> Model:
        """Run the smallest and the largest batch, so that the first request meets no first time.

        Raises ValueError where the file describes images or classes that are not the model's.
        """
        largest = min(max_batch, self.max_batch or max_batch)
        for rows in (largest, 1):
            outputs = self._sizes_from([(rows, *tensor.size) for tensor in self.inputs])
        return Model(
            self.version,
            self.platform,
            self.inputs,
            self._ends(outputs),
            largest,
            self.run,
            self._image_input(outputs),
        )

    def _sizes_from(self, shapes: Sequence[Size]) -> list[Size]:
        """The sizes of the outputs, from zeros of these shapes."""
        given = zip(shapes, self.inputs, strict=True)
        return [y.shape[1:] for y in self.run([np.zeros(shape, t.dtype) for shape, t in given])]

    def _ends(self, outputs: Sequence[Size]) -> tuple[Tensor, ...]:
        """The outputs, free along the axes that follow the inputs' free ones."""
        ends = named("output", outputs)
        if not any(tensor.free for tensor in self.inputs):
            return ends
        shorter = [
            (
                1,
                *(
                    max(1, n - 1) if axis in tensor.free else n
                    for axis, n in enumerate(tensor.size)
                ),
            )
            for tensor in self.inputs
        ]
        return tuple(
            replace(tensor, free=_differing(tensor.size, size))
            for tensor, size in zip(ends, self._sizes_from(shorter), strict=True)
        )

    def _image_input(self, outputs: Sequence[Size]) -> ImageInput | None:
        """The description of pictures for the size that is served."""
        said = self.image_input
        if said is None:
            return None
        sizes = [tensor.size for tensor in self.inputs]
        channels, *size = sizes[0]
        is_image = len(sizes) == 1 and len(size) == 2 and channels in (1, 3)
        same = channels == len(said.mean) == len(said.std)
        if not is_image or not same or [tuple(y) for y in outputs] != [(len(said.classes),)]:
            raise ValueError(
                f"{KEY} has {len(said.mean)} means, {len(said.std)} stds and {len(said.classes)} classes; "
                f"the model takes {sizes} and gives {outputs}"
            )
        height, width = size
        return replace(said, size=(height, width))


def open_model(path: Path, sizes: Sequence[Size], threads: int) -> Opened:
    """Read a program, or build an int8 checkpoint (.safetensors) and chain it.

    The file is copied, not mapped: whoever writes over it changes nothing here. Raises ValueError for a file that is
    neither, or for images or token ids whose size nobody has said.
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
    """A program that is mapped: processes of one machine that open it share its weights.

    The file may be replaced, as `Program.save` does, but not written over. Raises as `open_model`.
    """
    program = Program.load(path, threads)
    version = f"{zlib.crc32(program.data.data):08x}"
    return _program(program, path, version, sizes, program.extra)


def _program(
    program: Program, path: Path, version: str, sizes: Sequence[Size], extra: Mapping[str, Any]
) -> Opened:
    image_input = _read_image_input(path, extra)
    sizes = sizes or _sizes(image_input)
    if not sizes:
        if any(axes > 2 for axes, _ in program.inputs):
            raise ValueError(f"{path} takes images of any size: give --size, such as 1,3,224,224")
        if not all(channels for _, channels in program.inputs):
            raise ValueError(
                f"{path} takes any number of token ids: give --size, the longest, such as 1,128, once an input"
            )
        sizes = [(1, channels) for _, channels in program.inputs]
    if len(sizes) != len(program.inputs):
        raise ValueError(
            f"{path} takes {len(program.inputs)} input(s), not {len(sizes)}: give as many --size"
        )

    def run(inputs: Arrays) -> Arrays:
        return _listed(program(*inputs))

    inputs = tuple(
        tensor if count is None else replace(tensor, id_count=count, free=() if channels else (0,))
        for tensor, count, (_, channels) in zip(
            named("input", [size[1:] for size in sizes]),
            program.id_counts,
            program.inputs,
            strict=True,
        )
    )
    return Opened(version, "qkernels_program", inputs, program.max_batch, run, image_input)


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

    taken = named("input", [size[1:] for size in sizes])
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


def _differing(a: Size, b: Size) -> tuple[int, ...]:
    return tuple(axis for axis, (m, n) in enumerate(zip(a, b, strict=True)) if m != n)


def named(kind: str, sizes: Sequence[Size]) -> tuple[Tensor, ...]:
    """Inputs or outputs of float32: "input", or "input_0", "input_1" of several."""
    names = [kind] if len(sizes) == 1 else [f"{kind}_{i}" for i in range(len(sizes))]
    return tuple(Tensor(name, tuple(size)) for name, size in zip(names, sizes, strict=True))
