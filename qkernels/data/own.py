"""Data sets of torch as data of ours: any map-style data set of (input, label), or any DataLoader."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset, default_collate

from qkernels.data.image_data import ImageData
from qkernels.data.split import Split, hold_out
from qkernels.data.task import Labels, Task
from qkernels.utils.progress import progress

PARTS = ("train", "val", "test")
_PROBED = 16  # items whose values a digest looks at


@dataclass(frozen=True, eq=False)
class DatasetItems:
    """The inputs of a map-style data set, asked for when a batch needs them. An ImageStore.

    Tensors of floats come as they are: the data set has normalised and augmented them itself. Pictures (of Pillow) and
    arrays become uint8 [C, H, W].
    """

    dataset: Any
    positions: Tensor  # int64 [N]

    @property
    def shape(self) -> torch.Size:
        if not len(self):
            return torch.Size((0, 0))
        return torch.Size(
            (len(self.positions), *_input(self.dataset[int(self.positions[0])]).shape)
        )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: Tensor) -> Tensor:
        """Raises ValueError naming the item whose shape is another."""
        items = [_input(self.dataset[int(self.positions[i])]) for i in index]
        for i, item in zip(index, items, strict=True):
            if item.shape != items[0].shape:
                raise ValueError(
                    f"item {int(self.positions[i])} of {_kind(self.dataset)} has shape {list(item.shape)}, others "
                    f"{list(items[0].shape)}: resize them in the data set"
                )
        return torch.stack(items)

    def select(self, index: Tensor) -> DatasetItems:
        return DatasetItems(self.dataset, self.positions[index])

    def digest(self) -> str:
        """Hash of the kind and length of the data set and of a few of its items, with torch's random state kept."""
        total = hashlib.blake2b(
            f"{_kind(self.dataset)} {list(self.shape)}".encode(), digest_size=16
        )
        step = -(-len(self) // _PROBED)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            for position in self.positions[::step]:
                total.update(_input(self.dataset[int(position)]).contiguous().numpy().data)
        return total.hexdigest()


def from_datasets(
    train: Any,
    val: Any = None,
    test: Any = None,
    *,
    name: str = "own",
    classes: Iterable[str] | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    task: Task | None = None,
    ignore_index: int | None = None,
    val_fraction: float = 0.1,
    seed: int = 0,
) -> ImageData:
    """Data sets or DataLoaders of torch as `ImageData`, for everything that trains, prunes, evaluates and quantizes.

    Args:
        train: a map-style data set of (input, label); of a DataLoader, its data set, or all of its batches where it has
            a collate function or no length.
        val: the same; None: it is cut from train.
        test: the same; None: it is val.
        name: what reports call the data.
        classes: names of the outputs; None: those that train calls `classes`, else the numbers up to the largest label.
        mean: per channel, for inputs of uint8; None: no more than the scale [0, 1]. Inputs of floats stay as they are.
        std: per channel, as the mean.
        task: what labels mean, as `qkernels.data.Labels` says. None: one integer is a class; several of 0 and 1 are
            multilabel; other floats are regression.
        ignore_index: the label that says nothing, such as -100; None: every label counts.
        val_fraction: of train, where val is None.
        seed: of that cut.

    Raises ValueError for items that are no pair, and for an empty train.
    """
    splits = {
        part: _split(given)
        for part, given in zip(PARTS, (train, val, test), strict=True)
        if given is not None
    }
    if not len(splits["train"]):
        raise ValueError(f"{name}: there is nothing to train on")
    if "val" not in splits:
        splits["train"], splits["val"] = hold_out(splits["train"], val_fraction, seed)
    splits.setdefault("test", splits["val"])
    labels = splits["train"].labels
    assert labels is not None
    meaning = Labels(task or _task(labels, ignore_index), ignore_index)
    if classes is None:
        classes = getattr(_dataset(train), "classes", None)
    if classes is None:
        count = int(labels.max()) + 1 if labels.ndim == 1 else labels.shape[1]
        classes = map(str, range(count))
    channels = splits["train"].images.shape[1]
    return ImageData(
        name, tuple(map(str, classes or ())), splits["train"], splits["val"], splits["test"],
        tuple(mean or [0.0] * channels), tuple(std or [1.0] * channels), meaning=meaning,
    )  # fmt: skip


def _task(labels: Tensor, ignore: int | None) -> Task:
    """What labels of this form most likely mean."""
    if labels.ndim == 1:
        return "multiclass"
    binary = (labels == 0) | (labels == 1)
    binary = binary if ignore is None else binary | (labels == ignore)
    return "multilabel" if bool(binary.all()) else "regression"


def load_own(path: str, root: str | Path | None = None, **options: Any) -> ImageData:
    """Call the function `path` (`package.module:load`) and take what it returns for data.

    It returns `ImageData`, or data sets of torch: (train, val, test), (train, val) or a mapping of those names. `root`
    and the options are passed on where it has parameters of these names.
    Raises ValueError for options that it does not have and for another result.
    """
    from qkernels.models.sources import imported

    function: Callable[..., Any] = imported(path)
    known = inspect.signature(function).parameters
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ValueError(f"{path} has no parameter {unknown[0]!r}")
    given = options | ({"root": root} if root is not None and "root" in known else {})
    found = function(**given)
    if isinstance(found, ImageData):
        return found
    if isinstance(found, tuple | list) and 1 <= len(found) <= len(PARTS):
        found = dict(zip(PARTS, found, strict=False))
    if not isinstance(found, Mapping) or "train" not in found or set(found) - set(PARTS):
        raise ValueError(
            f"{path} returned a {type(found).__name__}: return (train, val, test) data sets of torch"
        )
    return from_datasets(**found, name=path)


def _split(given: Any) -> Split:
    if isinstance(given, Split):
        return given
    if isinstance(given, DataLoader) and (
        isinstance(given.dataset, IterableDataset) or given.collate_fn is not default_collate
    ):
        return _read(given)
    dataset = _dataset(given)
    if not hasattr(dataset, "__getitem__") or not hasattr(dataset, "__len__"):
        return _read(given)
    items = DatasetItems(dataset, torch.arange(len(dataset)))
    return Split(items, _labels(dataset), _normalised(_input(dataset[0])) if len(items) else True)


def _read(batches: Iterable[Any]) -> Split:
    """All batches of (inputs, labels), in memory."""
    inputs, labels = [], []
    for batch in batches:
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise ValueError(f"a batch is a {type(batch).__name__}, not (inputs, labels)")
        inputs.append(batch[0])
        labels.append(batch[1])
    if not inputs:
        raise ValueError("a loader without batches has nothing to train or test on")
    everything = torch.cat(inputs)
    return Split(everything, _as_labels(torch.cat(labels)), _normalised(everything[0]))


def _normalised(item: Tensor) -> bool:
    """Pictures of uint8 are not; whatever else a data set gives is what its model takes."""
    return item.dtype != torch.uint8


def _labels(dataset: Any) -> Tensor:
    """The labels of a data set by the attribute that torchvision's have, else out of every item."""
    if isinstance(dataset, Subset):
        return _labels(dataset.dataset)[torch.as_tensor(dataset.indices)]
    for name in ("targets", "labels", "tensors"):
        kept = getattr(dataset, name, None)
        kept = kept[1] if name == "tensors" and kept is not None and len(kept) == 2 else kept
        if (kept is not None and name != "tensors") or isinstance(kept, Tensor):
            return _as_labels(torch.as_tensor(kept))
    found = []
    with progress("reading labels", len(dataset)) as advance:
        for i in range(len(dataset)):
            item = dataset[i]
            _input(item)
            found.append(torch.as_tensor(item[1]))
            advance()
    return _as_labels(torch.stack(found) if found else torch.empty(0))


def _as_labels(labels: Tensor) -> Tensor:
    """One class an item as int64 [N], anything else as float [N, K]."""
    if labels.ndim == 1 and not labels.is_floating_point():
        return labels.long()
    return labels.float().reshape(len(labels), -1)


def _input(item: Any) -> Tensor:
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise ValueError(f"an item of the data set is a {type(item).__name__}, not (input, label)")
    given = item[0]
    if isinstance(given, Tensor):
        return given
    pixels = np.asarray(given)
    if pixels.dtype != np.uint8:
        return torch.from_numpy(pixels)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1).copy())


def _dataset(given: Any) -> Any:
    return given.dataset if isinstance(given, DataLoader) else given


def _kind(dataset: Any) -> str:
    return type(dataset).__name__
