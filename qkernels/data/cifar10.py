"""CIFAR-10 in the layouts people have on disk (Krizhevsky 2009)."""

from __future__ import annotations

import hashlib
import io
import pickle
import tarfile
import tempfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qkernels.data.augment import Augment
from qkernels.data.image_data import ImageData
from qkernels.data.paths import cache_dir, data_root, find, find_or_raise
from qkernels.data.split import Split, hold_out
from qkernels.image_input import pixels_of
from qkernels.utils.errors import first_line
from qkernels.utils.extras import require
from qkernels.utils.files import replacing
from qkernels.utils.progress import progress

CLASSES = (
    "airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck",
)  # fmt: skip
URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
# The ImageNet values: the published CIFAR-10 ResNets were trained with them, and a student
# must see the pixels that its teacher sees.
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)

TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
Arrays = tuple[NDArray[np.uint8], NDArray[np.uint8]]  # images [N, 3, 32, 32], labels [N]


def load_cifar10(
    root: str | Path | None = None,
    *,
    val_fraction: float = 0.1,
    seed: int = 0,
    download: bool = False,
) -> ImageData:
    """The official 50,000 + 10,000 images, from `cifar-10-batches-bin` or `cifar-10-batches-py`.

    `val` is cut from train by class share. `download=True` fetches the binary archive if neither
    folder is there. Raises FileNotFoundError if there is no data, ValueError if a file is damaged.
    """
    layouts = ("cifar-10-batches-bin", "cifar-10-batches-py")
    if download and find(layouts, root) is None:
        download_cifar10(root)
    folder = find_or_raise(layouts, root, "; download=True fetches it")
    read, suffix = (_read_binary, ".bin") if folder.name == layouts[0] else (_read_pickle, "")
    parts = [read(folder / (name + suffix)) for name in TRAIN_BATCHES]
    images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    test = read(folder / ("test_batch" + suffix))
    return _image_data("cifar10", (images, labels), test, val_fraction, seed)


def load_cifar10_subset(
    root: str | Path | None = None, *, val_fraction: float = 0.1, seed: int = 0
) -> ImageData:
    """4660 + 932 official images from `official_subset.npz`; `val` is cut from train."""
    path = find_or_raise(("official_subset.npz",), root)
    return _from_npz("cifar10-subset", path, val_fraction, seed)


def load_cifar10_jpeg(
    root: str | Path | None = None, *, val_fraction: float = 0.1, seed: int = 0
) -> ImageData:
    """All 60,000 images recompressed as JPEG, from `jpeg.zip`; `val` is cut from train.

    Decoded once; the pixels are kept in the cache folder (QKERNELS_CACHE or ~/.cache/qkernels).
    """
    archive = find_or_raise(("jpeg.zip",), root)
    return _from_npz("cifar10-jpeg", _decoded(archive), val_fraction, seed)


def download_cifar10(root: str | Path | None = None) -> Path:
    """Fetch the official binary archive, check its MD5, unpack it; returns its folder.

    Raises ConnectionError without network and ValueError if the archive is not the official one.
    """
    base = data_root(root)
    base.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=base) as folder:
        archive = Path(folder) / "cifar-10-binary.tar.gz"
        try:
            _fetch(URL, archive)
        except OSError as error:
            raise ConnectionError(
                f"cannot fetch {URL} ({error}): unpack that archive by other means so that "
                f"{base / 'cifar-10-batches-bin'} exists"
            ) from error
        digest = hashlib.md5(archive.read_bytes(), usedforsecurity=False).hexdigest()
        if digest != MD5:
            raise ValueError(f"{URL} has md5 {digest}, expected {MD5}")
        with tarfile.open(archive) as tar:
            tar.extraction_filter = getattr(tarfile, "data_filter", None)  # new in Python 3.10.12
            tar.extractall(folder)
        (Path(folder) / "cifar-10-batches-bin").rename(base / "cifar-10-batches-bin")
    return base / "cifar-10-batches-bin"


def _fetch(url: str, path: Path) -> None:
    with urllib.request.urlopen(url, timeout=30) as source, path.open("wb") as target:
        size = int(source.headers.get("Content-Length") or 0)
        with progress("downloading CIFAR-10", size) as advance:
            while block := source.read(1 << 20):
                target.write(block)
                advance(len(block))


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Whatever a reader says of a damaged file becomes a ValueError with its path."""
    try:
        yield
    except ValueError as error:
        if str(path) in str(error) or "admitted" in str(error):
            raise
        raise ValueError(f"{path} is damaged ({first_line(error)}): fetch it again") from error
    except (zipfile.BadZipFile, zlib.error, pickle.UnpicklingError, EOFError, KeyError) as error:
        raise ValueError(f"{path} is damaged ({first_line(error)}): fetch it again") from error


def _image_data(
    name: str, train: Arrays, test: Arrays, val_fraction: float, seed: int
) -> ImageData:
    rest, val = hold_out(_split(train), val_fraction, seed)
    return ImageData(name, CLASSES, rest, val, _split(test), MEAN, STD, Augment(4, flip=True))


def _split(arrays: Arrays) -> Split:
    images, labels = arrays
    return Split(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64)))


def _from_npz(name: str, path: Path, val_fraction: float, seed: int) -> ImageData:
    with _whole(path), np.load(path) as arrays:
        train = arrays["train_images"], arrays["train_labels"]
        test = arrays["test_images"], arrays["test_labels"]
    return _image_data(name, train, test, val_fraction, seed)


def _read_binary(path: Path) -> Arrays:
    """Records of 1 label byte and 3072 pixel bytes, channel first."""
    raw = np.fromfile(path, np.uint8)
    if raw.size == 0 or raw.size % 3073:
        raise ValueError(f"{path} has {raw.size} bytes, not a positive multiple of 3073")
    records = raw.reshape(-1, 3073)
    if records[:, 0].max() > 9:
        raise ValueError(f"{path} has the label {records[:, 0].max()}, the largest is 9")
    return records[:, 1:].reshape(-1, 3, 32, 32), records[:, 0].copy()


class _ArrayUnpickler(pickle.Unpickler):
    """Loads numpy arrays in plain containers and nothing else: a pickle can run any code."""

    ALLOWED = frozenset(
        [("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")]
        + [(f"numpy.{core}.multiarray", "_reconstruct") for core in ("core", "_core")]
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise ValueError(f"the pickle asks for {module}.{name}, only numpy arrays are admitted")
        return super().find_class(module.replace("numpy.core", "numpy._core"), name)


def _read_pickle(path: Path) -> Arrays:
    """A dictionary with b"data" uint8 [N, 3072] and b"labels", a list of N integers."""
    with _whole(path), path.open("rb") as file:
        content = _ArrayUnpickler(file, encoding="bytes").load()
    if not isinstance(content, dict) or not {b"data", b"labels"} <= set(content):
        raise ValueError(f"{path} is not a CIFAR-10 batch: it lacks data or labels")
    images = np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32)
    return images, np.asarray(content[b"labels"], np.uint8)


def _decoded(archive_path: Path) -> Path:
    """The .npz of a zip of <split>/<class>/<n>.jpg; made at the first call."""
    with _whole(archive_path), zipfile.ZipFile(archive_path) as archive:
        listing = repr([(info.filename, info.CRC) for info in archive.infolist()]).encode()
        path = cache_dir() / f"cifar10-jpeg-{zlib.crc32(listing):08x}.npz"
        if path.exists():
            return path
        train, test = _decode(archive, "train"), _decode(archive, "test")
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:  # a second process may be at it too
        np.savez(
            aside,
            train_images=train[0],
            train_labels=train[1],
            test_images=test[0],
            test_labels=test[1],
        )
    return path


def _decode(archive: zipfile.ZipFile, split: str) -> Arrays:
    image_module = require("PIL.Image")
    names = [n for n in archive.namelist() if n.startswith(split + "/") and n.endswith(".jpg")]
    images = np.empty((len(names), 3, 32, 32), np.uint8)
    labels = np.array([CLASSES.index(name.split("/")[1]) for name in names], np.uint8)
    with progress(f"decoding {split}", len(names)) as advance:
        for target, name in zip(images, names, strict=True):
            picture = image_module.open(io.BytesIO(archive.read(name)))
            target[:] = pixels_of(picture, 3, (32, 32), 0.0)
            advance()
    return images, labels
