"""Reading one image file: every kind of pixel, orientation and damage."""

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_attn.data import images
from vae_attn.errors import UserError

RNG = np.random.default_rng(0)
COLOUR = RNG.integers(0, 256, (6, 9, 3), dtype=np.uint8)
GREY = COLOUR[..., 0]


def _png_with_header(width: int, height: int) -> bytes:
    """A PNG that says it has that size, and ends there: what a decompression bomb starts with."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "tiff"])
@pytest.mark.parametrize("pixels", [COLOUR, GREY])
def test_lossless_files_read_exactly(tmp_path, suffix, pixels):
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}")
    found = images.read_image(tmp_path / f"a.{suffix}")
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, pixels.reshape(6, 9, -1))


@pytest.mark.parametrize("suffix", ["jpg", "jpeg"])
def test_jpeg_reads_nearly(tmp_path, suffix):
    smooth = np.tile(np.arange(0, 160, 5, dtype=np.uint8), (32, 1))
    Image.fromarray(smooth).save(tmp_path / f"a.{suffix}", quality=95)
    found = images.read_image(tmp_path / f"a.{suffix}")
    assert np.abs(found[..., 0].astype(int) - smooth).max() <= 3


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bits_scale_to_8(tmp_path, suffix):
    deep = np.array([[0, 128, 129, 257], [32768, 65407, 65535, 514]], np.uint16)
    Image.fromarray(deep).save(tmp_path / f"a.{suffix}")
    found = images.read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found[..., 0], np.round(deep / 65535 * 255))


def test_channels_asked_for(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "c.png")
    Image.fromarray(GREY).save(tmp_path / "g.png")
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    grey = images.read_image(tmp_path / "c.png", channels=1)
    assert grey.shape == (6, 9, 1)
    assert np.abs(grey[..., 0] - luma).max() <= 1
    rgb = images.read_image(tmp_path / "g.png", channels=3)
    np.testing.assert_array_equal(rgb, np.stack([GREY] * 3, axis=-1))


def test_palettes_become_colour_or_grey(tmp_path):
    indices = (np.arange(54) % 4).astype(np.uint8).reshape(6, 9)
    for name, table in {
        "colour": [255, 0, 0, 0, 255, 0, 9, 8, 7, 1, 2, 3],
        "grey": [7] * 12,
    }.items():
        picture = Image.fromarray(indices)
        picture.putpalette(table)
        picture.save(tmp_path / f"{name}.png")
        expected = np.array(table, np.uint8).reshape(4, 3)[indices]
        found = images.read_image(tmp_path / f"{name}.png")
        np.testing.assert_array_equal(found, expected if name == "colour" else expected[..., :1])


def test_cmyk_becomes_rgb(tmp_path):
    inks = np.zeros((4, 4, 4), np.uint8)
    inks[..., 0] = 255  # cyan alone absorbs red
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.tif")
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.tif")[0, 0], [0, 255, 255])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparent_pixels_show_white(tmp_path, mode):
    picture = Image.new(mode, (3, 2), (0,) * len(mode))  # black, but wholly transparent
    picture.putpixel((0, 0), (10,) * (len(mode) - 1) + (255,))
    picture.save(tmp_path / "a.png")
    found = images.read_image(tmp_path / "a.png")
    assert found.shape[-1] == len(mode) - 1
    assert (found[0, 0] == 10).all()
    assert (found[1] == 255).all()


def test_transparent_colour_of_a_palette_shows_white(tmp_path):
    picture = Image.fromarray(np.array([[0, 1]], np.uint8))
    picture.putpalette([10, 20, 30, 40, 50, 60])
    picture.save(tmp_path / "a.png", transparency=b"\x00\xff")
    found = images.read_image(tmp_path / "a.png")
    np.testing.assert_array_equal(found[0], [[255] * 3, [40, 50, 60]])


# Orientation tag -> what is done to the stored pixels to see them upright (EXIF 2.3, 4.6.4 A).
UPRIGHT = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1),
    6: lambda p: np.rot90(p, -1),
    7: lambda p: p[::-1, ::-1].swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_orientation_is_applied(tmp_path, orientation, suffix):
    picture = Image.fromarray(COLOUR)
    exif = picture.getexif()
    exif[0x0112] = orientation
    picture.save(tmp_path / f"a.{suffix}", exif=exif)
    found = images.read_image(tmp_path / f"a.{suffix}")
    np.testing.assert_array_equal(found, UPRIGHT[orientation](COLOUR))


def test_uncompressed_tiff_with_a_quarter_turn(tmp_path):
    """Pillow scrambles these if it is given the path instead of an open file."""
    picture = Image.fromarray(GREY)
    picture.save(tmp_path / "a.tif", tiffinfo={0x0112: 6})
    found = images.read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(found[..., 0], np.rot90(GREY, -1))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_several_pictures_in_one_file_are_refused(tmp_path, suffix):
    first, second = (Image.fromarray(p) for p in (COLOUR, 255 - COLOUR))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(UserError, match=rf"a\.{suffix}: holds 2 pictures"):
        images.read_image(tmp_path / f"a.{suffix}")


def test_camera_photograph_with_a_preview_is_read(tmp_path):
    first, second = (Image.fromarray(p) for p in (COLOUR, 255 - COLOUR))
    first.save(tmp_path / "a.mpo", save_all=True, append_images=[second], quality=100)
    (tmp_path / "a.mpo").rename(tmp_path / "a.jpg")
    assert images.read_image(tmp_path / "a.jpg").shape == COLOUR.shape


@pytest.mark.parametrize("sides", [(9_000, 9_000), (10_000, 10_000), (30_000, 30_000)])
def test_decompression_bomb_is_refused(tmp_path, sides):
    """Below, between and above Pillow's own two limits, which stay as they are."""
    before = Image.MAX_IMAGE_PIXELS
    path = tmp_path / "bomb.png"
    path.write_bytes(_png_with_header(*sides))
    with pytest.raises(UserError, match=r"bomb\.png: .*80,000,000"):
        images.read_image(path)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "no png, jpeg, bmp or tiff"),
        (b"<html>404 not found</html>", "no png, jpeg, bmp or tiff"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "a.png"),
    ],
)
def test_content_that_is_no_image(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        images.read_image(tmp_path / "a.png")


def test_other_formats_under_a_png_name_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.gif")
    (tmp_path / "a.gif").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match="no png, jpeg, bmp or tiff"):
        images.read_image(tmp_path / "a.png")


@pytest.mark.parametrize("file_format", ["PNG", "JPEG", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_truncated_files_are_refused(tmp_path, file_format, share):
    whole = io.BytesIO()
    pixels = RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(whole, file_format)
    path = tmp_path / "cut.png"
    path.write_bytes(whole.getvalue()[: int(share * len(whole.getvalue()))])
    with pytest.raises(UserError, match=r"cut\.png"):
        images.read_image(path)


def test_missing_file_and_floats_are_told(tmp_path):
    with pytest.raises(UserError, match=r"gone\.png: cannot be read \(No such file"):
        images.read_image(tmp_path / "gone.png")
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(UserError, match=r"f\.tif: .*8 or 16 bits"):
        images.read_image(tmp_path / "f.tif")
    Image.fromarray(np.full((3, 3), 70_000, np.int32)).save(tmp_path / "i.tif")
    with pytest.raises(UserError, match=r"i\.tif: .*16 bits"):
        images.read_image(tmp_path / "i.tif")


@pytest.mark.parametrize("on", [1, 255])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_masks_mark_what_is_not_black(tmp_path, on, depth):
    mask = GREY > 128
    Image.fromarray(mask.astype(depth) * on).save(tmp_path / "m.png")
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), mask)


def test_masks_of_one_bit_in_colour_and_on_transparency(tmp_path):
    mask = GREY > 128
    Image.fromarray(mask).save(tmp_path / "bit.png")
    colour = np.zeros((6, 9, 3), np.uint8)
    colour[mask, 2] = 255  # drawn in blue, the channel of least luma
    Image.fromarray(colour).save(tmp_path / "blue.png")
    drawn = np.full((6, 9, 4), 255, np.uint8)
    drawn[..., 3] = mask * 255
    Image.fromarray(drawn).save(tmp_path / "over.png")
    for name in ("bit", "blue", "over"):
        np.testing.assert_array_equal(images.read_mask(tmp_path / f"{name}.png"), mask)


def test_jpeg_masks_have_no_halo(tmp_path):
    mask = np.zeros((32, 32), bool)
    mask[9:21, 11:23] = True
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "m.jpg", quality=60)
    with Image.open(tmp_path / "m.jpg") as stored:
        assert (np.asarray(stored)[~mask] > 0).any()  # there is something to get wrong
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.jpg"), mask)


def _lanczos_matrix(old: int, new: int) -> np.ndarray:
    """Lanczos-3 stretched to the scale of the reduction, rows normalised."""
    scale = max(old / new, 1)
    centres = (np.arange(new) + 0.5) * old / new
    t = (np.arange(old) + 0.5 - centres[:, None]) / scale
    weights = np.where(np.abs(t) < 3, np.sinc(t) * np.sinc(t / 3), 0)
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize(("height", "width", "size"), [(40, 60, 13), (10, 7, 21), (16, 16, 16)])
def test_resizing_is_antialiased_lanczos(height, width, size):
    pixels = RNG.integers(60, 200, (height, width, 3), dtype=np.uint8)
    expected = np.einsum(
        "ih,hwc,jw->ijc", _lanczos_matrix(height, size), pixels, _lanczos_matrix(width, size)
    )
    found = images.resize_image(pixels, size)
    assert np.abs(found - expected.clip(0, 255)).max() < 1.6  # two roundings, one a pass
    grey = images.resize_image(pixels[..., :1], size)
    np.testing.assert_array_equal(grey, found[..., :1])


def test_masks_resize_by_nearest():
    mask = RNG.random((31, 47)) < 0.5
    rows = np.floor((np.arange(10) + 0.5) * 31 / 10).astype(int)
    columns = np.floor((np.arange(10) + 0.5) * 47 / 10).astype(int)
    np.testing.assert_array_equal(images.resize_mask(mask, 10), mask[np.ix_(rows, columns)])


def test_a_tiny_defect_does_not_vanish():
    mask = np.zeros((900, 900), bool)
    mask[899, 450] = True  # no sample of a 256 x 256 grid lands here
    resized = images.resize_mask(mask, 256)
    np.testing.assert_array_equal(np.argwhere(resized), [[255, 128]])
    assert not images.resize_mask(np.zeros((900, 900), bool), 256).any()


def test_many_files_tell_all_failures(tmp_path):
    Image.fromarray(GREY).save(tmp_path / "b.png")
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    results, problems = images.read_many(images.read_image, paths)
    assert [result is None for result in results] == [True, False, True]
    assert [pathlib.Path(problem.split(":")[0]).name for problem in problems] == ["a.png", "c.png"]


def test_real_full_size_images(shared_data):
    root = shared_data / "mvtec_ad_full_size" / "bottle"
    path = root / "test" / "broken_large" / "000.png"
    image, shape = images.read_resized_image(path, 256)
    assert shape == (900, 900)
    # The resized copy beside it was made independently, by Lanczos and nearest as well.
    small = shared_data / "mvtec_ad" / "bottle"
    np.testing.assert_array_equal(
        image, images.read_image(small / "test" / "broken_large" / "000.png")
    )
    mask, _ = images.read_resized_mask(root / "ground_truth" / "broken_large" / "000_mask.png", 256)
    np.testing.assert_array_equal(
        mask, images.read_mask(small / "ground_truth" / "broken_large" / "000_mask.png")
    )
