"""Reading one image file: every kind of pixel, orientation and damage."""

import io
import pathlib
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vae_attn.data import image_files, images
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


def _png(levels: np.ndarray, colour_type: int, *others: bytes) -> bytes:
    """A PNG of 16 bits per channel, which Pillow cannot write in colour; `others` are chunks."""
    height, width = levels.shape[:2]
    rows = levels.astype(">u2").reshape(height, -1)
    lines = []
    for n, row in enumerate(rows):  # filters 0 and 1 in turn: the latter over a whole pixel
        data, step = np.frombuffer(row.tobytes(), np.uint8), 2 * levels.shape[2]
        left = np.concatenate([np.zeros(step, np.uint8), data[:-step]])
        lines.append(bytes([n % 2]) + (data - left if n % 2 else data).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 16, colour_type, 0, 0, 0)
    body = [(b"IHDR", header), *others, (b"IDAT", zlib.compress(b"".join(lines))), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in body
    )


def _tiff(levels: np.ndarray, order: str, *, deflate: bool, orientation: int = 1) -> bytes:
    """A TIFF of 16 bits per channel in colour, in either order of bytes."""
    height, width, channels = levels.shape
    data = levels.astype(f"{order}u2").tobytes()
    data = zlib.compress(data) if deflate else data
    bits = struct.pack(f"{order}{channels}H", *[16] * channels)
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, channels, 8)]
    entries += [(259, 3, 1, 8 if deflate else 1), (262, 3, 1, 2), (273, 4, 1, 8 + len(bits))]
    entries += [(274, 3, 1, orientation), (277, 3, 1, channels), (278, 4, 1, height)]
    entries += [(279, 4, 1, len(data))] + ([(338, 3, 1, 2)] if channels == 4 else [])
    head = (b"II" if order == "<" else b"MM") + struct.pack(
        f"{order}HI", 42, 8 + len(bits) + len(data)
    )
    table = struct.pack(f"{order}H", len(entries))
    for tag, kind, count, value in entries:
        form = "HHIHH" if kind == 3 and count == 1 else "HHII"
        values = (value, 0) if form == "HHIHH" else (value,)
        table += struct.pack(f"{order}{form}", tag, kind, count, *values)
    return head + bits + data + table + struct.pack(f"{order}I", 0)


DEEP = RNG.integers(0, 4096, (6, 9, 4))
DEEP[0, 0] = 4095


def _scaled(levels: np.ndarray, white: int, black: int = 0) -> np.ndarray:
    return np.floor((levels.clip(black, white) - float(black)) * 255 / (white - black) + 0.5)


def test_levels_are_the_data_sets_own_range_and_half_of_it_more():
    assert images.levels_of([]) == images.levels_of([None, None]) == (0, 65535)
    assert images.levels_of([(0, 4095), None, (5, 1000)]) == (0, 4095)
    assert images.levels_of([(2, 900), (0, 1023)]) == (0, 1023)
    assert images.levels_of([(0, 1024)]) == (0, 1536)
    assert images.levels_of([(29_000, 31_000)]) == (28_000, 32_000)
    assert images.levels_of([(900, 1000)]) == (850, 1023)
    assert images.levels_of([(0, 65535)]) == (0, 65535)
    assert images.levels_of([(3, 200)]) == (0, 255)
    assert images.levels_of([(700, 700)]) == (0, 1023)


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm", "jp2"])
def test_12_bits_in_a_file_of_16_keep_their_levels(tmp_path, suffix):
    """87 neighbouring levels became 2, and 87 between 0 and 2047 became 8."""
    path = tmp_path / f"a.{suffix}"
    for deep in (np.arange(1400, 1487), np.linspace(0, 2047, 87).astype(int)):
        deep = deep.astype(np.uint16).reshape(3, 29)
        Image.fromarray(deep).save(path)
        assert images.extent(path) == (deep.min(), deep.max())
        levels = black, white = images.levels_of([images.extent(path)])
        found = images.read_image(path, levels=levels)[..., 0]
        np.testing.assert_array_equal(found, _scaled(deep, white, black))
        assert len(np.unique(found)) == 87
        assert len(np.unique(images.read_image(path))) < 10
        resized, _ = images.read_resized_image(path, 3, levels=levels)
        assert np.ptp(resized) > 80


@pytest.mark.parametrize("kind", ["png", "<", "<z", ">", ">z"])
@pytest.mark.parametrize("channels", [3, 4])
def test_colour_of_16_bits_is_read_whole(tmp_path, kind, channels):
    """Pillow alone gives the upper byte: 16 levels of 12-bit colour."""
    levels, path = DEEP[..., :channels].copy(), tmp_path / "a.png"
    if channels == 4:
        levels[..., 3] = 65535
        levels[2, 3, 3] = 0
        levels[2, 4, 3] = 32768
    if kind == "png":
        path.write_bytes(_png(levels, {3: 2, 4: 6}[channels]))
    else:
        path.write_bytes(_tiff(levels, kind[0], deflate="z" in kind))
    assert images.extent(path)[1] == 4095
    found = images.read_image(path, levels=(0, 4095))
    expected = _scaled(levels[..., :3], 4095)
    if channels == 4:
        assert (found[2, 3] == 255).all()
        np.testing.assert_allclose(found[2, 4], (expected[2, 4] + 255) / 2, atol=1)
        found[2, 3:5] = expected[2, 3:5]
    np.testing.assert_array_equal(found, expected)


def test_deep_grey_with_alpha_and_deep_colours_that_are_transparent(tmp_path):
    path = tmp_path / "a.png"
    levels = np.stack([DEEP[..., 0], np.full((6, 9), 65535)], axis=-1)
    levels[1, 1, 1] = 0
    path.write_bytes(_png(levels, 4))
    found = images.read_image(path, levels=(0, 4095))
    assert found.shape == (6, 9, 1)
    assert found[1, 1, 0] == 255
    found[1, 1, 0] = expected = _scaled(levels[1, 1, 0], 4095)
    np.testing.assert_array_equal(found[..., 0], _scaled(levels[..., 0], 4095))
    for colours, kind in ((DEEP[..., :1], 0), (DEEP[..., :3], 2)):
        path.write_bytes(_png(colours, kind, (b"tRNS", colours[1, 1].astype(">u2").tobytes())))
        found = images.read_image(path, levels=(0, 4095))
        hidden = (colours == colours[1, 1]).all(axis=-1)
        assert (found[hidden] == 255).all()
        np.testing.assert_array_equal(found[~hidden], _scaled(colours, 4095)[~hidden])
    assert expected < 255


def test_deep_colour_is_turned_upright(tmp_path):
    (tmp_path / "a.tif").write_bytes(_tiff(DEEP[..., :3], "<", deflate=False, orientation=6))
    found = images.read_image(tmp_path / "a.tif", levels=(0, 4095))
    np.testing.assert_array_equal(found, np.rot90(_scaled(DEEP[..., :3], 4095), -1))


def test_deep_colour_masks_keep_the_level_1(tmp_path):
    mask = np.zeros((6, 9, 3), int)
    mask[2:4, 5, 1] = 1
    (tmp_path / "m.png").write_bytes(_png(mask, 2))
    np.testing.assert_array_equal(images.read_mask(tmp_path / "m.png"), mask[..., 1] > 0)


def test_what_is_brighter_or_darker_is_cut_off(tmp_path):
    Image.fromarray(np.array([[0, 99, 4195, 4196, 65535, 2148]], np.uint16)).save(
        tmp_path / "a.png"
    )
    found = images.read_image(tmp_path / "a.png", levels=(100, 4195))
    assert found[0, :, 0].tolist() == [0, 0, 255, 255, 255, 128]


def test_files_of_8_bits_are_never_scaled(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    assert images.extent(tmp_path / "a.png") is None
    np.testing.assert_array_equal(images.read_image(tmp_path / "a.png", levels=(5, 1023)), COLOUR)


@pytest.mark.parametrize("suffix", ["webp", "gif", "ppm", "pnm", "jp2", "avif", "jfif"])
def test_what_else_pillow_reads(tmp_path, suffix):
    assert f".{suffix}" in image_files.EXTENSIONS
    smooth = np.tile(np.arange(0, 160, 5, dtype=np.uint8), (32, 1))
    exact = {"webp": {"lossless": True}, "avif": {"quality": 100}}.get(suffix, {})
    Image.fromarray(np.stack([smooth] * 3, axis=-1)).save(tmp_path / f"a.{suffix}", **exact)
    found = images.read_image(tmp_path / f"a.{suffix}", channels=3)
    assert np.abs(found.astype(int) - smooth[..., None]).max() <= 3


@pytest.mark.parametrize("suffix", ["gif", "webp"])
def test_animations_are_refused(tmp_path, suffix):
    first, second = (Image.fromarray(p) for p in (COLOUR, 255 - COLOUR))
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second])
    with pytest.raises(UserError, match=rf"a\.{suffix}: holds 2 pictures"):
        images.read_image(tmp_path / f"a.{suffix}")


def test_masks_in_formats_that_may_lose_detail(tmp_path):
    mask = np.zeros((32, 32), bool)
    mask[9:21, 11:23] = True
    Image.fromarray(mask.astype(np.uint8)).convert("RGB").save(tmp_path / "1.webp", lossless=True)
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "255.webp", quality=30)
    for name in ("1", "255"):
        np.testing.assert_array_equal(images.read_mask(tmp_path / f"{name}.webp"), mask)


def test_the_union_of_masks(tmp_path):
    for n, box in enumerate([(0, 0, 2, 2), (1, 1, 4, 3)]):
        mask = Image.new("L", (9, 6))
        mask.paste(255, box)
        mask.save(tmp_path / f"{n}.png")
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    union = images.read_union(paths)
    np.testing.assert_array_equal(union, images.read_mask(paths[0]) | images.read_mask(paths[1]))
    Image.new("L", (6, 9)).save(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1\.png: 6 x 9 pixels, but .*0\.png has 9 x 6"):
        images.read_union(paths)


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
        (b"", r"no png, jpeg, .* image"),
        (b"<html>404 not found</html>", r"no png, jpeg, .* image"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, "a.png"),
    ],
)
def test_content_that_is_no_image(tmp_path, content, reason):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(UserError, match=reason):
        images.read_image(tmp_path / "a.png")


def test_other_formats_under_a_png_name_are_refused(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "a.ico")
    (tmp_path / "a.ico").rename(tmp_path / "a.png")
    with pytest.raises(UserError, match=r"no png, jpeg, .* image"):
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
    mask = images.read_mask(root / "ground_truth" / "broken_large" / "000_mask.png")
    mask = images.resize_mask(mask, 256)
    np.testing.assert_array_equal(
        mask, images.read_mask(small / "ground_truth" / "broken_large" / "000_mask.png")
    )


def test_decoders_of_other_libraries_are_silent(tmp_path, capfd):
    """libtiff would write "tempfile.tif: Using code not yet in table." and name no file of ours."""
    path = tmp_path / "broken.tif"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)).save(
        path, compression="tiff_lzw"
    )
    content = path.read_bytes()
    path.write_bytes(content[:300] + bytes(x ^ 0x5A for x in content[300:340]) + content[340:])
    with pytest.raises(UserError, match=r"broken\.tif: cannot be read"):
        images.read_image(path)
    assert capfd.readouterr().err == ""
