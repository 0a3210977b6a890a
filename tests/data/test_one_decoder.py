"""A picture is the same bytes for training, calibration, evaluation and serving, whatever its form."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch

from qkernels.data import load
from qkernels.image_input import PictureError, pixels_of
from qkernels.pipeline import calibration_batches

Image = pytest.importorskip("PIL.Image")
pictures = pytest.importorskip("qkernels.serve.pictures")

RNG = np.random.default_rng(0)
COLOUR = Image.fromarray(RNG.integers(0, 256, (5, 7, 3), np.uint8)).resize((40, 32))
ALPHA = Image.fromarray(np.linspace(0, 255, 40 * 32).reshape(32, 40).astype(np.uint8))
DEEP = Image.fromarray((np.arange(40 * 32) * 51).astype(np.uint16).reshape(32, 40))


def with_alpha(mode: str) -> Image.Image:
    picture = COLOUR.convert(mode)
    picture.putalpha(ALPHA)
    return picture


def clear_palette() -> dict:
    return {"transparency": COLOUR.convert("P").getpixel((20, 16))}


FORMS = {  # name -> (picture, Pillow's format, options)
    "L": (COLOUR.convert("L"), "PNG", {}),
    "LA": (with_alpha("L"), "PNG", {}),
    "L+tRNS": (COLOUR.convert("L"), "PNG", {"transparency": 128}),
    "P": (COLOUR.convert("P"), "PNG", {}),
    "P+tRNS": (COLOUR.convert("P"), "PNG", clear_palette()),
    "P+alpha of every entry": (COLOUR.convert("P"), "PNG", {"transparency": bytes(range(256))}),
    "RGB": (COLOUR, "PNG", {}),
    "RGB+tRNS": (COLOUR, "PNG", {"transparency": COLOUR.getpixel((20, 16))}),
    "RGBA": (with_alpha("RGB"), "PNG", {}),
    "1": (COLOUR.convert("1"), "PNG", {}),
    "I;16": (DEEP, "PNG", {}),
    "I;16+tRNS": (DEEP, "PNG", {"transparency": 51 * 700}),
    "CMYK": (COLOUR.convert("CMYK"), "JPEG", {"quality": 95}),
    "JPEG of L": (COLOUR.convert("L"), "JPEG", {}),
    "MPO": (COLOUR, "MPO", {"save_all": True, "append_images": [COLOUR.rotate(180)]}),
    "WebP of RGBA": (with_alpha("RGB"), "WEBP", {"lossless": True}),
}
FORMS |= {
    f"EXIF {turn} {kind}": (COLOUR, kind, {"exif": (lambda e: (e.__setitem__(0x0112, turn), e)[1])(Image.Exif())})
    for turn in range(1, 9)
    for kind in ("JPEG", "PNG", "WEBP")
}  # fmt: skip
SUFFIX = {"PNG": "png", "JPEG": "jpg", "MPO": "jpg", "WEBP": "webp"}


def encoded(form: str) -> bytes:
    picture, kind, options = FORMS[form]
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One class of all forms, as a user would keep them."""
    root = tmp_path_factory.mktemp("forms")
    for split in ("train", "val", "test"):
        (root / split / "only").mkdir(parents=True)
        for number, form in enumerate(FORMS):
            name = f"{number:02}.{SUFFIX[FORMS[form][1]]}"
            (root / split / "only" / name).write_bytes(encoded(form))
    return root


@pytest.mark.parametrize("mean", [(0.5, 0.4, 0.3), (0.5,)], ids=["colour", "grey"])
def test_every_form_is_the_same_bytes_for_training_and_serving(
    folder: Path, mean: tuple[float, ...]
) -> None:
    data = load("imagefolder", folder, image_size=24, mean=mean, std=mean)
    sent = [pictures.decode(encoded(form), data.image_input)[0] for form in FORMS]
    for split in ("train", "val", "test"):
        ((seen, _),) = data.batches(split, len(FORMS))
        for form, want, got in zip(FORMS, sent, seen, strict=True):
            assert np.array_equal(want, got.numpy()), (split, form)
    calibrated = torch.cat(list(calibration_batches(data, len(FORMS), seed=0)))
    key = lambda x: x.tobytes()  # noqa: E731
    assert sorted(map(key, calibrated.numpy())) == sorted(map(key, sent))


def test_a_photograph_is_upright_for_training_too(folder: Path) -> None:
    data = load("imagefolder", folder, image_size=24)
    forms = {
        form: image.int()
        for form, image in zip(FORMS, data.train.images[torch.arange(len(FORMS))], strict=True)
    }
    turned = COLOUR.transpose(Image.Transpose.ROTATE_270)  # what EXIF 6 asks a viewer to do
    want = torch.from_numpy(pixels_of(turned, 3, (24, 24), data.border).copy())
    assert torch.equal(forms["EXIF 6 PNG"], want.int())
    assert (forms["EXIF 6 JPEG"] - want).abs().float().mean() < 8


def test_16_bits_are_no_white_and_what_is_transparent_is(folder: Path) -> None:
    data = load("imagefolder", folder, image_size=32, mean=(0.5,), std=(0.5,))
    images = dict(zip(FORMS, data.train.images[torch.arange(len(FORMS))], strict=True))
    assert images["I;16"].float().mean() < 160  # clipped, all but a few pixels were white
    deep = Image.new("I;16", (8, 8), 700)
    deep.info["transparency"] = 700
    assert (pixels_of(deep, 1, (8, 8), 0.0) == 255).all()


def test_premultiplied_alpha_is_no_decoder_s_fault() -> None:
    assert pixels_of(with_alpha("L").convert("La"), 3, (8, 8), 0.0).shape == (3, 8, 8)
    got = pixels_of(with_alpha("RGB").convert("RGBa"), 3, (32, 40), 0.0).astype(int)
    assert np.abs(got - pixels_of(with_alpha("RGB"), 3, (32, 40), 0.0)).max() <= 2


@pytest.mark.parametrize(
    ("picture", "why"),
    [
        (Image.new("F", (4, 4)), "floating-point pixels"),
        (Image.fromarray(np.full((4, 4), 70000, np.int32)), "from 70000 to 70000"),
        (Image.fromarray(np.full((4, 4), -1, np.int32)), "from -1 to -1"),
    ],
)
def test_pixels_without_an_8_bit_meaning_are_refused_and_not_clipped(
    picture: Image.Image, why: str
) -> None:
    with pytest.raises(PictureError, match=why):
        pixels_of(picture, 3, (4, 4), 0.0)


def test_a_picture_too_large_to_decode_is_named_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "train" / "only").mkdir(parents=True)
    COLOUR.save(tmp_path / "train" / "only" / "scan.png")
    data = load("imagefolder", tmp_path, val_fraction=0.0)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # DecompressionBombError is no OSError
    with pytest.raises(ValueError, match=r"scan.png is not a readable image: .*exceeds limit"):
        data.train.images[torch.tensor([0])]
