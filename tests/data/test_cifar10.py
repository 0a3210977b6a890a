import hashlib
import io
import os
import pickle
import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from qkernels.data import cifar10, load
from qkernels.data.cifar10 import CLASSES


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QKERNELS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("QKERNELS_DATA", raising=False)


def make_batches() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    rng = np.random.default_rng(0)
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    labels = np.tile(np.arange(10, dtype=np.uint8), 2)
    return {name: (rng.integers(0, 256, (20, 3072), np.uint8), labels) for name in names}


def write_binary(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (pixels, labels) in make_batches().items():
        np.hstack([labels[:, None], pixels]).tofile(folder / f"{name}.bin")


def write_pickles(folder: Path) -> None:
    """As Python 2 wrote them: protocol 2, the old module name of numpy."""
    folder.mkdir(parents=True)
    for name, (pixels, labels) in make_batches().items():
        content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"x"}
        raw = pickle.dumps(content, protocol=2)
        (folder / name).write_bytes(raw.replace(b"cnumpy._core.", b"cnumpy.core."))


@pytest.mark.parametrize("below", ["", "cifar10", "data/cifar10"])
def test_binary_and_pickle_layouts_agree(tmp_path: Path, below: str) -> None:
    write_binary(tmp_path / "bin" / below / "cifar-10-batches-bin")
    write_pickles(tmp_path / "py" / below / "cifar-10-batches-py")
    binary, pickled = load("cifar10", tmp_path / "bin"), load("cifar10", tmp_path / "py")
    for split in ("train", "val", "test"):
        assert torch.equal(binary.split(split).images, pickled.split(split).images)
        assert torch.equal(binary.split(split).labels, pickled.split(split).labels)
    assert (len(binary.train), len(binary.val), len(binary.test)) == (90, 10, 20)
    assert binary.val.labels.tolist().count(3) == 1
    first = make_batches()["test_batch"][0][0].reshape(3, 32, 32)
    assert np.array_equal(binary.test.images[0].numpy(), first)


def test_a_pickle_that_asks_for_more_than_arrays_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, ("true",)

    write_pickles(tmp_path / "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "data_batch_2").write_bytes(pickle.dumps(Evil()))
    with pytest.raises(ValueError, match=r"asks for posix.system, only numpy arrays"):
        load("cifar10", tmp_path)


def test_damaged_binary_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    write_binary(folder)
    with (folder / "data_batch_3.bin").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"data_batch_3.bin has 61461 bytes"):
        load("cifar10", tmp_path)


def test_missing_data_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no cifar-10-batches-bin or .* download=True"):
        load("cifar10", tmp_path)


def test_root_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "cifar-10-batches-bin")
    monkeypatch.setenv("QKERNELS_DATA", str(tmp_path))
    assert len(load("cifar10", val_fraction=0.0).train) == 100


def test_no_network_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, path: Path) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(cifar10, "_fetch", fail)
    with pytest.raises(ConnectionError, match=r"unpack that archive .*cifar-10-batches-bin exists"):
        load("cifar10", tmp_path, download=True)


def test_a_download_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_binary(tmp_path / "source" / "cifar-10-batches-bin")
    archive, root = tmp_path / "archive.tar.gz", tmp_path / "root"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "source" / "cifar-10-batches-bin", "cifar-10-batches-bin")
    monkeypatch.setattr(cifar10, "MD5", hashlib.md5(archive.read_bytes()).hexdigest())
    monkeypatch.setattr(cifar10, "_fetch", lambda url, path: shutil.copy(archive, path))
    assert len(load("cifar10", root, download=True, val_fraction=0.0).train) == 100
    assert [p.name for p in root.iterdir()] == ["cifar-10-batches-bin"]


def test_a_wrong_archive_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "_fetch", lambda url, path: path.write_bytes(b"not it"))
    with pytest.raises(ValueError, match=r"has md5 .*, expected c32a1d4a"):
        load("cifar10", tmp_path, download=True)


def test_subset(tmp_path: Path) -> None:
    arrays = {
        "train_images": np.zeros((40, 3, 32, 32), np.uint8),
        "train_labels": np.arange(40, dtype=np.uint8) % 10,
        "test_images": np.ones((10, 3, 32, 32), np.uint8),
        "test_labels": np.arange(10, dtype=np.uint8),
    }
    np.savez(tmp_path / "official_subset.npz", **arrays)
    data = load("cifar10-subset", tmp_path, val_fraction=0.25)
    assert (len(data.train), len(data.val), len(data.test)) == (30, 10, 10)
    assert data.test.labels.tolist() == list(range(10))


def test_jpeg_zip_is_decoded_once(tmp_path: Path) -> None:
    image_module = pytest.importorskip("PIL.Image")
    with zipfile.ZipFile(tmp_path / "jpeg.zip", "w") as archive:
        for split in ("train", "test"):
            for label, name in enumerate(CLASSES):
                picture = image_module.new("RGB", (32, 32), (label * 20, 0, 255 - label * 20))
                buffer = io.BytesIO()
                picture.save(buffer, "JPEG", quality=95)
                archive.writestr(f"{split}/{name}/0000.jpg", buffer.getvalue())
    data = load("cifar10-jpeg", tmp_path, val_fraction=0.0)
    assert data.train.labels.tolist() == list(range(10))
    red = data.train.images[:, 0].float().mean((1, 2))
    assert (red - 20 * torch.arange(10)).abs().max() < 4
    (cached,) = (tmp_path / "cache").iterdir()
    stamp = cached.stat().st_mtime_ns
    again = load("cifar10-jpeg", tmp_path, val_fraction=0.0)
    assert torch.equal(data.train.images, again.train.images)
    assert cached.stat().st_mtime_ns == stamp
