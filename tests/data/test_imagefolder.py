import os
from pathlib import Path

import pytest
import torch

from qkernels.data import load

image_module = pytest.importorskip("PIL.Image")


def write(folder: Path, count: int, colour: tuple[int, int, int], size: tuple[int, int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image_module.new("RGB", size, colour).save(folder / f"{number}.png")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "train" / "cat", 6, (200, 0, 0), (20, 30))
    write(tmp_path / "train" / "dog", 4, (0, 100, 0), (30, 20))
    write(tmp_path / "test" / "dog", 3, (0, 100, 0), (16, 16))
    return tmp_path


def test_classes_are_folders_and_val_is_cut_from_train(root: Path) -> None:
    data = load("imagefolder", root, image_size=16, val_fraction=0.5)
    assert data.class_names == ("cat", "dog")
    assert data.train.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.val.labels.tolist() == [0, 0, 0, 1, 1]
    assert data.test.labels.tolist() == [1, 1, 1]
    images = data.train.images[torch.tensor([0, 4])]
    assert images.shape == (2, 3, 16, 16)
    assert images[:, :, 8, 8].tolist() == [[200, 0, 0], [0, 100, 0]]


def test_batches_are_those_of_any_data(root: Path) -> None:
    data = load("imagefolder", root, image_size=16)
    for images, labels in data.batches("train", 4, shuffle=True, augment=True):
        assert images.shape == (len(labels), 3, 16, 16)


def test_centre_crop(tmp_path: Path) -> None:
    """256/224 of the size remains on the shorter side, and the middle is cut out of it."""
    picture = image_module.new("L", (128, 64), 0)
    picture.paste(255, (32, 0, 96, 64))  # the central square is white
    (tmp_path / "train" / "only").mkdir(parents=True)
    picture.save(tmp_path / "train" / "only" / "a.png")
    data = load("imagefolder", tmp_path, image_size=56, val_fraction=0.0)
    image = data.train.images[torch.tensor([0])]
    assert image.shape == (1, 3, 56, 56)
    assert image.min() == 255


def test_loose_images_are_unlabelled(root: Path) -> None:
    write(root / "val" / "cat", 1, (0, 0, 0), (8, 8))
    for name in ("cat", "dog"):
        for path in (root / "train" / name).iterdir():
            path.rename(root / "train" / f"{name}{path.name}")
        (root / "train" / name).rmdir()
    (root / "val" / "dog").mkdir()
    data = load("imagefolder", root, image_size=8)
    assert data.train.labels is None
    assert len(data.train) == 10
    assert data.class_names == ("cat", "dog")


def test_a_file_beside_the_class_folders_is_no_class(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "train" / "notes.txt").write_text("not a class")
    (root / "test" / "list.csv").write_text("not a class")
    glob = Path.glob  # before Python 3.11 a trailing slash meant nothing to it
    monkeypatch.setattr(Path, "glob", lambda self, pattern: glob(self, pattern.rstrip("/")))
    assert load("imagefolder", root, image_size=8).class_names == ("cat", "dog")


def test_faults_are_named(root: Path, tmp_path: Path) -> None:
    write(root / "test" / "cow", 1, (0, 0, 0), (8, 8))
    with pytest.raises(ValueError, match="has the class 'cow', which train has not"):
        load("imagefolder", root)
    with pytest.raises(FileNotFoundError, match="no images in"):
        load("imagefolder", tmp_path / "nowhere")
    (root / "test" / "cow" / "0.png").write_bytes(b"no image")
    (root / "train" / "cow").mkdir()
    (root / "test" / "cow" / "0.png").rename(root / "train" / "cow" / "0.png")
    data = load("imagefolder", root, val_fraction=0.0)
    with pytest.raises(ValueError, match=r"0.png is not a readable image"):
        data.train.images[torch.arange(len(data.train))]
    assert [fault.split(" is not")[0] for fault in data.train.images.faults()] == [
        str(root / "train" / "cow" / "0.png")
    ]


def test_hidden_folders_and_files_are_no_classes_and_no_pictures(root: Path) -> None:
    for name in (".ipynb_checkpoints", ".git", "__MACOSX", "@eaDir", "$RECYCLE.BIN"):
        write(root / "train" / name, 1, (0, 0, 0), (8, 8))
    write(root / "train" / "cat" / ".thumbnails", 1, (0, 0, 0), (8, 8))
    (root / "train" / "cat" / "._0.png").write_bytes(b"a resource fork of macOS")
    data = load("imagefolder", root, image_size=8, val_fraction=0.0)
    assert data.class_names == ("cat", "dog") and len(data.train) == 10 and data.notes == ()


def test_a_class_without_pictures_is_no_silent_class(root: Path) -> None:
    (root / "train" / "cow").mkdir()
    with pytest.raises(ValueError, match="cow has no images"):
        load("imagefolder", root)


def test_what_is_left_out_is_said_by_kind_and_count(root: Path) -> None:
    write(root / "train" / "cat" / "more", 2, (0, 0, 0), (8, 8))
    (root / "train" / "dog" / "a.heic").write_bytes(b"")
    (root / "train" / "dog" / "labels").write_bytes(b"")
    data = load("imagefolder", root, image_size=8, val_fraction=0.0)
    assert data.notes == (
        f"{root / 'train'}: kept 10 of 14 files (2 in sub-folders, 1 .heic, 1 without a suffix left out)",
    )


@pytest.mark.parametrize("suffix", ["tif", "pgm", "jfif", "gif"])
def test_formats_that_pillow_reads_do_not_vanish(root: Path, suffix: str) -> None:
    kind = {"jfif": "JPEG"}.get(suffix)
    image_module.new("L", (9, 9), 5).save(root / "train" / "cat" / f"x.{suffix}", kind)
    assert len(load("imagefolder", root, image_size=8, val_fraction=0.0).train) == 11


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_pictures_are_found_by_each_of_their_usual_names(root: Path, name: str) -> None:
    write(root / name / "cat", 2, (0, 0, 0), (8, 8))
    assert len(load("imagefolder", root, image_size=8).val) == 2
    write(root / ("val" if name == "valid" else "valid") / "cat", 1, (0, 0, 0), (8, 8))
    with pytest.raises(ValueError, match="are both validation images"):
        load("imagefolder", root)


@pytest.mark.parametrize(
    ("size", "shown", "border"), [((80, 64), 64, 0), ((32, 32), 32, 0), ((500, 400), 224, 1 / 16)]
)
def test_small_pictures_are_not_blown_up_to_224(
    tmp_path: Path, size: tuple[int, int], shown: int, border: float
) -> None:
    write(tmp_path / "train" / "one", 3, (1, 2, 3), size)
    data = load("imagefolder", tmp_path)
    assert data.image_shape == (3, shown, shown) and data.border == border


def test_mean_and_std_of_one_channel_make_grey_pictures(root: Path) -> None:
    data = load("imagefolder", root, image_size=8, mean=(0.5,), std=(0.25,))
    assert data.image_shape == (1, 8, 8)
    assert next(iter(data.batches("train", 2)))[0].shape == (2, 1, 8, 8)


def test_other_labels_or_pixels_are_other_data(root: Path) -> None:
    before = load("imagefolder", root, image_size=8, val_fraction=0.0).digest()
    assert before == load("imagefolder", root, image_size=8, val_fraction=0.0).digest()
    one, other = root / "train" / "cat" / "0.png", root / "train" / "dog" / "0.png"
    aside = one.read_bytes()
    one.write_bytes(other.read_bytes())  # the same names and counts
    other.write_bytes(aside)
    later = one.stat().st_mtime_ns + 10**7  # a file system's clock may tick every few milliseconds
    os.utime(one, ns=(later, later))
    assert load("imagefolder", root, image_size=8, val_fraction=0.0).digest() != before
