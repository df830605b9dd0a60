"""Image files and arrays become uint8 pixels; damaged and hostile ones are named."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import noise, saved_image

from dynamic_confidence.runtime.errors import DynamicConfidenceError
from dynamic_confidence.runtime.manifest import Preprocessing
from dynamic_confidence.runtime.pixels import pixels_from_array, pixels_from_files, pixels_from_image, read_array

COLOUR = Preprocessing(color="RGB", height=4, width=6, mean=(0.0,) * 3, std=(1.0,) * 3)
GREY = Preprocessing(color="L", height=4, width=6, mean=(0.0,), std=(1.0,))


def test_rgb(tmp_path: Path):
    image = noise(4, 6, 3)
    got = pixels_from_image(saved_image(tmp_path / "a.png", image), COLOUR)
    np.testing.assert_array_equal(got, image.transpose(2, 0, 1))
    assert got.dtype == np.uint8
    assert got.flags.c_contiguous


@pytest.mark.parametrize("suffix", ["png", "bmp", "gif", "tif", "pgm", "webp"])
def test_grey_in_every_lossless_format(tmp_path: Path, suffix: str):
    image = noise(4, 6)
    options = {"lossless": True} if suffix == "webp" else {}
    got = pixels_from_image(saved_image(tmp_path / f"a.{suffix}", image, **options), GREY)
    np.testing.assert_allclose(got[0].astype(int), image, atol=1 if suffix == "webp" else 0)


def test_transparency_is_dropped(tmp_path: Path):
    image = noise(4, 6, 4)
    got = pixels_from_image(saved_image(tmp_path / "a.png", image), COLOUR)
    np.testing.assert_array_equal(got, image[:, :, :3].transpose(2, 0, 1))


def test_palette(tmp_path: Path):
    palette = Image.fromarray(noise(4, 6, 3)).quantize(5)
    palette.save(tmp_path / "a.png")
    got = pixels_from_image(tmp_path / "a.png", COLOUR)
    np.testing.assert_array_equal(got, np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


def test_grey_becomes_colour_and_colour_grey(tmp_path: Path):
    grey = noise(4, 6)
    got = pixels_from_image(saved_image(tmp_path / "grey.png", grey), COLOUR)
    np.testing.assert_array_equal(got, np.stack([grey] * 3))
    colour = noise(4, 6, 3)
    luma = (colour @ [0.299, 0.587, 0.114])[None]  # ITU-R 601-2, as Pillow documents its "L"
    np.testing.assert_allclose(pixels_from_image(saved_image(tmp_path / "colour.png", colour), GREY), luma, atol=1)


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [(1, lambda a: a), (2, np.fliplr), (3, lambda a: np.rot90(a, 2)), (6, lambda a: np.rot90(a, -1)), (8, np.rot90)],
)
def test_jpeg_is_turned_as_its_exif_says(tmp_path: Path, orientation: int, turn):
    image = np.kron(noise(2, 3), np.ones((16, 16), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved_image(tmp_path / "a.jpg", image, quality=100, exif=exif)
    wanted = turn(image)
    preprocessing = Preprocessing(color="L", height=wanted.shape[0], width=wanted.shape[1], mean=(0.0,), std=(1.0,))
    np.testing.assert_allclose(pixels_from_image(path, preprocessing)[0].astype(int), wanted, atol=3)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
def test_another_size_is_resized(tmp_path: Path, interpolation):
    image = noise(9, 7)
    preprocessing = Preprocessing(color="L", height=4, width=6, mean=(0.0,), std=(1.0,), interpolation=interpolation)
    wanted = Image.fromarray(image).resize((6, 4), Image.Resampling[interpolation.upper()])
    got = pixels_from_image(saved_image(tmp_path / "a.png", image), preprocessing)
    np.testing.assert_array_equal(got[0], np.asarray(wanted))


def test_a_constant_image_stays_constant_when_resized(tmp_path: Path):
    got = pixels_from_image(saved_image(tmp_path / "a.png", np.full((17, 5, 3), 77, np.uint8)), COLOUR)
    assert got.shape == (3, 4, 6)
    assert (got == 77).all()


@pytest.mark.parametrize(("height", "width"), [(8, 12), (8, 8), (20, 8), (8, 9)])
def test_centre_crop_is_a_slice_of_the_middle(tmp_path: Path, height: int, width: int):
    """The shorter side has its size already, so only the crop is left to do."""
    image = noise(height, width)
    preprocessing = Preprocessing(color="L", height=4, width=6, mean=(0.0,), std=(1.0,), resize_shorter_side=8)
    top, left = (height - 4) // 2, (width - 6) // 2
    got = pixels_from_image(saved_image(tmp_path / "a.png", image), preprocessing)
    np.testing.assert_array_equal(got[0], image[top : top + 4, left : left + 6])


def test_the_shorter_side_is_resized_before_the_crop(tmp_path: Path):
    image = noise(16, 32)
    preprocessing = Preprocessing(color="L", height=4, width=6, mean=(0.0,), std=(1.0,), resize_shorter_side=8)
    small = np.asarray(Image.fromarray(image).resize((16, 8), Image.Resampling.BILINEAR))
    got = pixels_from_image(saved_image(tmp_path / "a.png", image), preprocessing)
    np.testing.assert_array_equal(got[0], small[2:6, 5:11])


def test_many_files_are_read_in_order_and_the_first_broken_one_is_named(tmp_path: Path):
    images = noise(40, 4, 6)
    files = [saved_image(tmp_path / f"{index}.png", image) for index, image in enumerate(images)]
    np.testing.assert_array_equal(pixels_from_files(files, GREY)[:, 0], images)
    for index in (31, 7, 22):
        files[index].write_bytes(b"")
    with pytest.raises(DynamicConfidenceError, match=r"/7\.png: not a readable image"):
        pixels_from_files(files, GREY)


def test_an_image_of_16_bits_is_refused_rather_than_clipped(tmp_path: Path):
    path = saved_image(tmp_path / "a.png", np.arange(24, dtype=np.uint16).reshape(4, 6) * 2000)
    with pytest.raises(DynamicConfidenceError, match=r"a\.png: has more than 8 bits per channel \(mode I.*Convert it"):
        pixels_from_image(path, GREY)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_a_file_that_is_no_image_is_refused(tmp_path: Path, content: bytes):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(DynamicConfidenceError, match=r"a\.png: not a readable image \("):
        pixels_from_image(tmp_path / "a.png", COLOUR)


def test_a_decompression_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved_image(tmp_path / "a.png", noise(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 16)
    with pytest.raises(DynamicConfidenceError, match=r"a\.png: not a readable image \(.*decompression bomb"):
        pixels_from_image(path, GREY)


@pytest.mark.parametrize("size", [(1, 30000), (30000, 1)])
def test_a_strip_that_would_grow_to_gigabytes_is_refused(tmp_path: Path, size: tuple[int, int]):
    path = saved_image(tmp_path / "a.png", np.zeros(size, np.uint8))
    large = Preprocessing(color="RGB", height=224, width=224, mean=(0.0,) * 3, std=(1.0,) * 3, resize_shorter_side=256)
    with pytest.raises(
        DynamicConfidenceError, match=r"a\.png: \d+ x \d+ pixels would become .*7680000.* Crop it first"
    ):
        pixels_from_image(path, large)
    assert pixels_from_image(path, COLOUR).shape == (3, 4, 6)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL", "ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "bmp", "tif", "webp"])
def test_damaged_images_never_raise_anything_else(tmp_path: Path, suffix: str):
    buffer = io.BytesIO()
    formats = {"jpg": "JPEG", "tif": "TIFF"}
    Image.fromarray(noise(20, 20, 3)).save(buffer, formats.get(suffix, suffix.upper()))
    damage_and_read(tmp_path / f"a.{suffix}", buffer.getvalue(), lambda path: pixels_from_image(path, COLOUR))


@pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning", "ignore:invalid escape:SyntaxWarning")
@pytest.mark.parametrize("suffix", ["npy", "npz"])
def test_damaged_arrays_never_raise_anything_else(tmp_path: Path, suffix: str):
    buffer = io.BytesIO()
    if suffix == "npy":
        np.save(buffer, noise(1, 4, 6))
    else:
        np.savez_compressed(buffer, image=noise(1, 4, 6), label=np.zeros(1, np.int64))
    damage_and_read(tmp_path / f"a.{suffix}", buffer.getvalue(), read_array)


def damage_and_read(path: Path, good: bytes, read) -> None:
    rng, messages = np.random.default_rng(0), []
    for attempt in range(150):
        content = np.frombuffer(good, np.uint8).copy()
        reach = min(len(content), 150) if attempt % 2 else len(content)
        content[rng.integers(0, reach, 4)] = rng.integers(0, 256, 4)
        path.write_bytes(content.tobytes()[: rng.integers(len(good)) if attempt % 5 == 0 else None])
        try:
            read(path)
        except DynamicConfidenceError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert all(message.startswith(f"{path}: ") for message in messages)


@pytest.mark.parametrize(
    ("layout", "preprocessing"),
    [
        ((3, 4, 6), COLOUR),
        ((4, 6, 3), COLOUR),
        ((1, 4, 6), GREY),
        ((4, 6, 1), GREY),
        ((4, 6), GREY),
    ],
)
@pytest.mark.parametrize("count", [None, 1, 5])
def test_arrays_in_every_layout(layout: tuple[int, ...], preprocessing: Preprocessing, count: int | None):
    images = noise(count or 1, *preprocessing.shape)
    array = {
        preprocessing.shape: images,
        (4, 6, preprocessing.channels): images.transpose(0, 2, 3, 1),
        (4, 6): images[:, 0],
    }[layout]
    got = pixels_from_array(array if count else array[0], preprocessing, "a.npy")
    np.testing.assert_array_equal(got, images)
    assert got.flags.c_contiguous


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (
            np.zeros((3, 4, 6)),
            r"got float64 values, expected uint8 pixels 0\.\.255 of shape \[N, 3, 4, 6\] or \[N, 4, 6",
        ),
        (np.full((3, 4, 6), np.nan, np.float32), "got float32 values, NaN among them, expected .*pixels as they are"),
        (np.zeros((3, 4, 6), np.int64), "got int64 values, expected uint8"),
        (np.zeros((3, 4, 6), bool), "got bool values, expected uint8"),
        (np.zeros((2, 3, 6, 4), np.uint8), r"shape \[2, 3, 6, 4\], expected .*\[N, 3, 4, 6\].* arrays are not"),
        (np.zeros((4, 6), np.uint8), r"shape \[4, 6\], expected"),
        (np.zeros((1, 2, 3, 4, 6), np.uint8), r"shape \[1, 2, 3, 4, 6\], expected"),
        (np.zeros((), np.uint8), r"shape \[\], expected"),
    ],
)
def test_arrays_that_are_no_pixels_are_refused(array: np.ndarray, message: str):
    with pytest.raises(DynamicConfidenceError, match=rf"a\.npy: {message}|a\.npy: got an array of {message}"):
        pixels_from_array(array, COLOUR, "a.npy")


@pytest.mark.parametrize(
    ("image", "label"),
    [("image", "label"), ("images", "labels"), ("x", "y"), ("image", None), ("x", None), ("anything", None)],
)
def test_names_in_an_npz(tmp_path: Path, image: str, label: str | None):
    arrays = {image: noise(2, 4, 6)} | ({label: np.array([1, 0])} if label else {})
    np.savez(tmp_path / "a.npz", **arrays)
    got, labels = read_array(tmp_path / "a.npz")
    np.testing.assert_array_equal(got, arrays[image])
    if label is None:
        assert labels is None
    else:
        np.testing.assert_array_equal(labels, [1, 0])


def test_an_npz_without_images_is_refused(tmp_path: Path):
    np.savez(tmp_path / "a.npz", a=noise(2), b=noise(2))
    with pytest.raises(DynamicConfidenceError, match=r"a\.npz: holds \['a', 'b'\], expected an array named 'image'"):
        read_array(tmp_path / "a.npz")


class Hostile:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("form", ["pickle", "npy", "npz"])
def test_code_in_an_array_file_is_not_run(tmp_path: Path, form: str):
    marker, path = tmp_path / "ran", tmp_path / f"a.{'npz' if form == 'npz' else 'npy'}"
    hostile = np.array([Hostile(marker)], object)
    if form == "pickle":
        path.write_bytes(pickle.dumps(Hostile(marker)))
    elif form == "npy":
        np.save(path, hostile, allow_pickle=True)
    else:
        np.savez(path, image=hostile)
    with pytest.raises(DynamicConfidenceError, match=r"not a readable \.npy or \.npz file \(.*(allow_pickle|pickled)"):
        read_array(path)
    assert not marker.exists()
