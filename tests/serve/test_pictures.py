"""Pictures that become inputs as in training, and what is refused instead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
import torch
from encoded_pictures import COLOURS, STORED, encoded, frames, png, quadrants, rotated, webp
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from served_nets import save_program
from torch import nn

import qkernels as qk
from qkernels import data as datasets
from qkernels.data import Batches, Split
from qkernels.image_input import ImageInput
from qkernels.program import Program
from qkernels.serve import pictures
from qkernels.serve.batching import QueueFull
from qkernels.serve.model import open_model
from qkernels.serve.protocol import RequestError

PLAIN = ImageInput(("a", "b"), (32, 32), (0.0,) * 3, (1 / 255,) * 3)  # pixels as they are
GREY = ImageInput(("a", "b"), (32, 32), (0.0,), (1 / 255,))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def pixels(body: bytes, image_input: ImageInput = PLAIN) -> np.ndarray:
    """[H, W, C], 0..255"""
    (x,) = pictures.decode(body, image_input)
    assert x.dtype == np.float32 and x.shape == (len(image_input.mean), *image_input.size)
    return x.transpose(1, 2, 0)


def middles(body: bytes, image_input: ImageInput = PLAIN) -> np.ndarray:
    """The colour in the middle of each quadrant."""
    return pixels(body, image_input)[8::16, 8::16]


# ---- as in training


def test_a_digit_sent_as_png_is_the_input_of_the_training_to_the_bit() -> None:
    data = datasets.load("digits")
    (batch, _), *_ = data.batches("test", 40)
    for image, want in zip(data.test.images[torch.arange(40)], batch, strict=True):
        body = encoded(Image.fromarray(image[0].numpy()))
        assert np.array_equal(pictures.decode(body, data.image_input)[0], want.numpy())


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**32 - 1), st.sampled_from(["PNG", "WEBP"]))  # fmt: skip
def test_a_picture_of_the_right_size_is_normalised_to_the_bit(
    height: int, width: int, seed: int, kind: str
) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    split = Split(torch.from_numpy(image).permute(2, 0, 1)[None])
    ((want, _),) = Batches(split, 1, MEAN, STD)
    got = pictures.decode(
        encoded(Image.fromarray(image), kind, lossless=True),
        ImageInput(("a",), (height, width), MEAN, STD),
    )
    assert np.array_equal(got, want.numpy())


def test_a_photograph_is_cut_and_resized_as_a_folder_of_images_is(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (9, 13, 3), np.uint8)
    photograph = Image.fromarray(noise).resize((130, 90))
    (tmp_path / "train" / "only").mkdir(parents=True)
    photograph.save(tmp_path / "train" / "only" / "a.png")
    data = datasets.load("imagefolder", tmp_path, image_size=24, val_fraction=0.0)
    ((want, _),) = data.batches("train", 1)
    assert np.array_equal(pictures.decode(encoded(photograph), data.image_input), want.numpy())


# ---- kinds of pictures


@pytest.mark.parametrize(
    ("body", "most"),
    [
        pytest.param(encoded(quadrants()), 0, id="png"),
        pytest.param(encoded(quadrants(), "WEBP", lossless=True), 0, id="webp"),
        pytest.param(encoded(quadrants().convert("P", palette=Image.Palette.ADAPTIVE)), 0, id="palette"),
        pytest.param(encoded(quadrants().convert("RGBA")), 0, id="alpha"),
        pytest.param(encoded(quadrants(), "JPEG", quality=95), 8, id="jpeg"),
        pytest.param(encoded(quadrants(), "WEBP", quality=95), 8, id="lossy-webp"),
        pytest.param(encoded(quadrants().convert("CMYK"), "JPEG", quality=95), 8, id="cmyk"),
        pytest.param(encoded(quadrants(64), "JPEG", quality=95, progressive=True), 8, id="progressive"),
        pytest.param(frames("MPO"), 8, id="mpo"),  # what telephones write
        pytest.param(encoded(quadrants(200)), 0, id="larger"),
        pytest.param(encoded(quadrants(8)), 12, id="smaller"),
    ],
)  # fmt: skip
def test_every_kind_of_picture_has_its_colours(body: bytes, most: int) -> None:
    assert np.abs(middles(body) - COLOURS).max() <= most


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_a_rotated_photograph_is_put_upright(kind: str, orientation: int) -> None:
    got = middles(rotated(quadrants(), orientation, kind))
    assert np.abs(got - COLOURS).max() <= 8


def test_what_is_transparent_is_white() -> None:
    picture = quadrants().convert("RGBA")
    picture.putalpha(Image.fromarray(np.repeat([[0], [255]], 16, 0).astype(np.uint8).repeat(32, 1)))
    expected = COLOURS.copy()
    expected[0] = 255
    assert np.array_equal(middles(encoded(picture)), expected)
    half = Image.new("LA", (32, 32), (0, 128))
    assert np.all(pixels(encoded(half)) == 127)
    palette = quadrants().convert("P", palette=Image.Palette.ADAPTIVE)
    hidden = palette.getpixel((0, 0))
    seen = middles(encoded(palette, transparency=hidden))
    assert np.array_equal(seen[0, 0], [255] * 3) and np.array_equal(seen[1], COLOURS[1])


def test_grey_and_colour_become_each_other() -> None:
    ramp = np.arange(1024, dtype=np.uint16).reshape(32, 32)
    grey = Image.fromarray((ramp >> 2).astype(np.uint8))
    assert np.array_equal(pixels(encoded(grey), GREY)[..., 0], ramp >> 2)
    assert np.array_equal(pixels(encoded(grey)), np.stack([ramp >> 2] * 3, -1))
    luma = COLOURS @ [0.299, 0.587, 0.114]  # ITU-R BT.601
    assert np.abs(middles(encoded(quadrants()), GREY)[..., 0] - luma).max() < 1
    ink = Image.fromarray(ramp > 511)
    assert np.array_equal(pixels(encoded(ink))[..., 0], 255 * (ramp > 511))


def test_of_16_bits_the_upper_8_are_taken() -> None:
    ramp = (np.arange(1024) * 64).astype(np.uint16).reshape(32, 32)
    assert np.array_equal(pixels(encoded(Image.fromarray(ramp)), GREY)[..., 0], ramp >> 8)
    samples = np.repeat(ramp, 3, 1).astype(">u2").view(np.uint8)
    rows = np.pad(samples, ((0, 0), (1, 0)))  # a filter of 0 before each row
    body = png(32, 32, 16, 2, rows.tobytes())
    assert np.array_equal(pixels(body), np.stack([ramp >> 8] * 3, -1))


def test_the_centre_of_a_long_picture_is_taken_whatever_its_length() -> None:
    wide = Image.new("RGB", (96, 32), "black")
    wide.paste(quadrants(), (32, 0))
    assert np.array_equal(pixels(encoded(wide)), np.asarray(quadrants()))
    thread = png(pictures.MAX_PIXELS, 1, 1, 0, bytes(1 + pictures.MAX_PIXELS // 8))
    assert np.all(pixels(thread) == 0)


# ---- what is refused


def half(body: bytes) -> bytes:
    return body[: len(body) // 2]


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8))


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 415, "no PNG, JPEG or WebP picture"),
        (b"a picture, honestly", 415, "no PNG, JPEG or WebP picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415, "no PNG"),
        (encoded(quadrants(), "GIF"), 415, "no PNG"),
        (encoded(quadrants(), "BMP"), 415, "no PNG"),
        (encoded(quadrants(), "TIFF"), 415, "no PNG"),
        (b"--b\r\ncontent-disposition: form-data\r\n\r\n" + encoded(quadrants()), 415, "no PNG.*; it is a form"),
        (encoded(quadrants())[:20], 400, "damaged: "),
        (half(encoded(NOISE)), 400, "damaged: "),
        (half(encoded(NOISE, "JPEG")), 400, "damaged: "),
        (half(encoded(NOISE, "WEBP")), 400, "damaged: "),
        (png(32, 32, 8, 2, b"\0" * 50), 400, "damaged: "),
        (frames("PNG"), 400, "the PNG picture is animated; a still one"),
        (frames("WEBP"), 400, "the WEBP picture is animated; a still one"),
        (png(100_000, 100_000, 1, 0, b""), 413, "more than 25,000,000 pixels"),
        (png(10_000, 10_000, 1, 0, b""), 413, "more than 25,000,000 pixels"),
        (png(5001, 5000, 1, 0, b""), 413, "more than 25,000,000 pixels"),
        (png(2**31 - 1, 2**31 - 1, 8, 6, b""), 413, "more than 25,000,000 pixels"),
        (webp(16383, 16383), 413, "more than 25,000,000 pixels"),
        (webp(9000, 9000), 413, "more than 25,000,000 pixels"),
    ],
)  # fmt: skip
def test_what_is_no_picture_is_refused_in_one_sentence(
    body: bytes, status: int, sentence: str, recwarn: pytest.WarningsRecorder
) -> None:
    with pytest.raises(RequestError, match=sentence) as refused:
        pictures.decode(body, PLAIN)
    assert refused.value.status == status and "\n" not in str(refused.value)
    assert len(recwarn) == 0  # nothing else goes to the log


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(["PNG", "JPEG", "WEBP", "rotated", "animated"]),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=6),
    st.floats(0.05, 1),
)
def test_damaged_bytes_give_an_input_or_a_refusal(
    kind: str, changes: list[tuple[float, int]], kept: float
) -> None:
    special = {"rotated": rotated(NOISE, 6, "JPEG"), "animated": frames("WEBP")}
    body = bytearray(special.get(kind) or encoded(NOISE, kind))
    for where, value in changes:
        body[int(where * (len(body) - 1))] = value
    sent = bytes(body[: int(kept * len(body))])
    try:
        x = pictures.decode(sent, PLAIN)
    except RequestError as error:
        status = error.status
    else:
        status = 200 if x.shape == (1, 3, 32, 32) and np.isfinite(x).all() else 0
    assert status in (200, 400, 413, 415)


def test_pictures_that_wait_are_bounded() -> None:
    body = encoded(quadrants(512))

    async def run() -> list[object]:
        decoder = pictures.Decoder(2)
        tasks = [decoder(body, PLAIN) for _ in range(5)]
        first = await asyncio.gather(*tasks, return_exceptions=True)
        await decoder(body, PLAIN)  # there is room again
        decoder.close()
        return first

    kinds = [type(result) for result in asyncio.run(run())]
    assert kinds == [np.ndarray] * 2 + [QueueFull] * 3


# ---- answers


def test_an_answer_has_the_five_best_classes_by_softmax() -> None:
    logits = np.random.default_rng(0).standard_normal(7).astype(np.float32) * 300
    classes = ImageInput(tuple("abcdefg"), (1, 1), (0.0,), (1.0,))
    got = pictures.best(classes, logits, 5)
    want = torch.from_numpy(logits).double().softmax(0)
    assert got["label"] == "abcdefg"[int(logits.argmax())] == got["top"][0]["label"]
    best = want.sort(descending=True).values[:5].tolist()
    assert [row["probability"] for row in got["top"]] == pytest.approx(best)
    two = ImageInput(("x", "y"), (1, 1), (0.0,), (1.0,))
    assert len(pictures.best(two, logits[:2], 5)["top"]) == 2


# ---- what the file says


FIVE = {"classes": list("vwxyz"), "size": [8, 8], "mean": list(MEAN), "std": list(STD)}


def test_a_program_says_the_size_of_its_images(tmp_path: Path) -> None:
    path = tmp_path / "m.qkp"
    Program.load(save_program(path)).save(path, extra={"image_input": FIVE})
    model = open_model(path, [], 1).warm_up(2)
    assert model.inputs[0].size == (3, 8, 8)
    assert model.image_input == ImageInput(tuple("vwxyz"), (8, 8), MEAN, STD)


def test_another_size_may_be_served_than_the_file_says(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    chained = qk.compile(qk.quantize(net, "static", [x]), x)
    chained.save(tmp_path / "m.qkp", extra={"image_input": FIVE})
    model = open_model(tmp_path / "m.qkp", [(1, 3, 12, 10)], 1).warm_up(2)
    assert model.image_input is not None
    assert pictures.decode(encoded(quadrants()), model.image_input).shape == (1, 3, 12, 10)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"classes": list("abcd")}, "4 classes; the model takes .* and gives"),
        ({"mean": [0.5]}, "3, H, W"),
        ({"std": [0.5] * 2}, "3 means, 2 stds"),
        ({"mean": [0.5], "std": [0.5]}, "3, H, W"),
        ({"classes": "cat"}, "image_input is not right: Expected `array`, got `str` - at `$.classes`"),
        ({"size": [8]}, "image_input is not right: .*size"),
        ({"mean": None}, "image_input is not right: .*mean"),
    ],
)  # fmt: skip
def test_a_description_of_another_model_is_named(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "m.qkp"
    Program.load(save_program(path)).save(path, extra={"image_input": FIVE | change})
    with pytest.raises(ValueError, match=sentence.replace("$", r"\$")):
        open_model(path, [], 1).warm_up(2)
