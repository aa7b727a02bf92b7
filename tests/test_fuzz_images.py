"""Damaged and hostile image files: the right pixels or one sentence, whatever the bytes."""

import io
import os
import struct
import zlib

import numpy as np
import PIL.Image
import pytest
from fuzzing import answer, damaged, examples
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from vae_attn.data import images
from vae_attn.errors import UserError
from vae_attn.experiments.anomaly import own_images

RNG = np.random.default_rng(0)
_NOISE = RNG.integers(0, 256, (12, 17, 4), dtype=np.uint8)


def _encoded(picture, file_format, **options):
    buffer = io.BytesIO()
    picture.save(buffer, file_format, **options)
    return buffer.getvalue()


def _valid():
    """Small files of every format and mode that is read."""
    colour, alpha = PIL.Image.fromarray(_NOISE[..., :3]), PIL.Image.fromarray(_NOISE)
    grey = PIL.Image.fromarray(_NOISE[..., 0])
    deep = PIL.Image.fromarray(RNG.integers(0, 2**16, (12, 17), dtype=np.uint16))
    turned = PIL.Image.Exif()
    turned[0x0112] = 6
    pages = {"save_all": True, "append_images": [colour]}
    return {
        "png": _encoded(colour, "PNG", pnginfo=None, exif=turned),
        "png_alpha": _encoded(alpha, "PNG"),
        "png_16": _encoded(deep, "PNG"),
        "png_palette": _encoded(colour.quantize(7), "PNG", transparency=2),
        "png_animated": _encoded(colour, "PNG", **pages),
        "jpeg": _encoded(colour, "JPEG", exif=turned, icc_profile=b"icc" * 30),
        "jpeg_progressive": _encoded(grey, "JPEG", progressive=True),
        "jpeg_cmyk": _encoded(colour.convert("CMYK"), "JPEG"),
        "mpo": _encoded(colour, "MPO", **pages),
        "bmp": _encoded(colour, "BMP"),
        "bmp_palette": _encoded(colour.quantize(7), "BMP"),
        "bmp_bits": _encoded(grey.convert("1"), "BMP"),
        "tiff": _encoded(colour, "TIFF", tiffinfo=turned),
        "tiff_lzw": _encoded(colour, "TIFF", compression="tiff_lzw"),
        "tiff_deflate_16": _encoded(deep, "TIFF", compression="tiff_adobe_deflate"),
        "tiff_cmyk": _encoded(colour.convert("CMYK"), "TIFF"),
        "tiff_float": _encoded(grey.convert("F"), "TIFF"),
        "tiff_pages": _encoded(colour, "TIFF", **pages),
        "webp": _encoded(alpha, "WEBP", exif=turned),
        "webp_animated": _encoded(colour, "WEBP", **pages),
        "gif": _encoded(colour.quantize(7), "GIF", transparency=2),
        "gif_animated": _encoded(colour, "GIF", **pages),
        "ppm": _encoded(colour, "PPM"),
        "pgm_16": _encoded(deep, "PPM"),
        "jp2": _encoded(colour, "JPEG2000"),
        "avif": _encoded(colour, "AVIF"),
    }


VALID = _valid()


def _read_all(path):
    """What every reader answers; the pixels where they are given are well-formed."""
    image = answer(lambda: images.read_image(path), path)
    if image is not None:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[-1] in (1, 3)
        assert image.size
    mask = answer(lambda: images.read_mask(path), path)
    extent = answer(lambda: images.extent(path), path)
    assert extent is None or 0 <= extent[0] <= extent[1] <= 65535
    assert mask is None or (mask.dtype == bool and mask.ndim == 2)
    resized = answer(lambda: images.read_resized_image(path, 9, channels=3), path)
    assert (resized is None) == (image is None)
    if image is not None:
        assert resized[0].shape == (9, 9, 3)
        assert resized[1] == image.shape[:2]
    return image


@pytest.mark.parametrize("kind", VALID)
@given(data=st.data())
@examples(12)
def test_damaged_images(tmp_path, kind, data):
    path = tmp_path / data.draw(st.sampled_from(["a.png", "a.jpg", "a.tif", "a.bmp", "a"]))
    path.write_bytes(data.draw(damaged(VALID[kind])))
    _read_all(path)


def _chunks(png):
    """A PNG's chunks: kind and data."""
    place, found = 8, []
    while place < len(png):
        (length,) = struct.unpack(">I", png[place : place + 4])
        found.append((png[place + 4 : place + 8], png[place + 8 : place + 8 + length]))
        place += length + 12
    return found


def _of_chunks(chunks):
    """A PNG with right checksums, so that damage is met behind them."""
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, content in chunks:
        checksum = struct.pack(">I", zlib.crc32(kind + content))
        parts.append(struct.pack(">I", len(content)) + kind + content + checksum)
    return b"".join(parts)


@pytest.mark.parametrize("kind", [kind for kind in VALID if kind.startswith("png")])
@given(data=st.data())
@examples(30)
def test_png_chunks_with_right_checksums(tmp_path, kind, data):
    chunks = _chunks(VALID[kind])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(chunks) - 1))
        name, content = chunks[place]
        if data.draw(st.booleans()):
            chunks[place] = (name, data.draw(damaged(content, most=2)))
        else:  # twice, elsewhere, or under another name
            names = [
                b"IHDR",
                b"PLTE",
                b"tRNS",
                b"IDAT",
                b"iCCP",
                b"eXIf",
                b"zTXt",
                b"acTL",
                b"fdAT",
            ]
            other = data.draw(st.sampled_from([name, *names]))
            chunks.insert(data.draw(st.integers(0, len(chunks))), (other, content))
    path = tmp_path / "a.png"
    path.write_bytes(_of_chunks(chunks))
    _read_all(path)


@given(
    content=st.binary(max_size=200), start=st.sampled_from([b"", b"BM", b"II*\0", b"\xff\xd8\xff"])
)
@examples(100)
def test_any_bytes(tmp_path, content, start):
    path = tmp_path / "a.png"
    path.write_bytes(start + content)
    _read_all(path)


@given(
    shape=arrays.array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=5),
    dtype=st.sampled_from([np.uint8, np.uint8, np.uint8, np.int64, np.float32, bool, object, "U3"]),
    channels=st.sampled_from([1, 3]),
)
@examples(100)
def test_images_of_any_size_and_type_fit_or_are_refused(shape, dtype, channels):
    given_images = np.zeros(shape, dtype)
    fitted = answer(
        lambda: images.fit_images(given_images, (4, 4, channels)), "images must be uint8"
    )
    right = dtype is np.uint8 and shape[-1] in (1, 3) and 0 not in shape[1:]
    assert (fitted is not None) == right
    if right:
        assert fitted.shape == (shape[0], 4, 4, channels)


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    assert (
        answer(lambda: images.read_image(tmp_path / "a.png"), "a.png: is no regular file") is None
    )
    assert answer(lambda: images.read_mask(tmp_path), tmp_path) is None


@given(
    pattern=st.one_of(
        st.text(max_size=40),
        st.text(alphabet="*?[]!-/.~a\0{}\\", max_size=12),
        st.integers(200, 5000).map("a".__mul__),
    )
)
@examples(150)
def test_any_pattern_of_files(tmp_path, monkeypatch, pattern):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.png").write_bytes(VALID["png"])
    if pattern.lstrip().startswith(("/", "~/")) or ".." in pattern or pattern == "~":
        pattern = "./a" + pattern.replace("..", ".")  # not the whole disk
    found = answer(lambda: own_images.find(pattern), "--images=")
    assert found is None or all(path.exists() for path in found)


def test_folders_that_link_to_each_other(tmp_path):
    """Two links back, twice in each of 40 levels, would be 2**40 folders."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(VALID["png"])
    for name in ("back", "again"):
        (tmp_path / "photos" / name).symlink_to(tmp_path / "photos")
    found = answer(lambda: own_images.find(str(tmp_path / "photos")))
    assert found == [tmp_path / "photos" / "a.png"]


def test_no_home_folder_of_that_name():
    with pytest.raises(UserError, match=r"--images=~nobody_of_that_name/\* cannot be looked up"):
        own_images.find("~nobody_of_that_name/*")
