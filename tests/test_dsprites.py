"""Factor grid, renderer, packed bits, and the readers of dSprites files."""

import io
import json
import os
import pathlib
import tracemalloc
import zipfile

import jax
import matplotlib.path
import numpy as np
import PIL.Image
import pytest

from vae_attn.data import dsprites, dsprites_files, dsprites_geometry, dsprites_renderer
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError


def _small_grid(**chosen):
    """The dSprites grid with the chosen values of some factors, the first two of the others."""
    official = zip(dsprites.GRID.names, dsprites.GRID.values, strict=True)
    return FactorGrid(
        dsprites.GRID.names,
        tuple(tuple(chosen.get(name, values[:2])) for name, values in official),
    )


def _render(grid):
    packed = dsprites_renderer.render(grid)
    return np.unpackbits(packed, axis=1).reshape(-1, 64, 64)


@pytest.fixture(scope="module")
def full_packed():
    return dsprites_renderer.render(dsprites.GRID)


# The grid of factors


def test_grid_is_the_official_one():
    grid = dsprites.GRID
    assert grid.sizes == (1, 3, 6, 40, 32, 32)
    assert grid.num_images == 737_280
    assert grid.varying == (1, 2, 3, 4, 5)
    np.testing.assert_allclose(grid.values[2], [0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert grid.values[3][-1] == pytest.approx(2 * np.pi)
    np.testing.assert_allclose(np.diff(grid.values[4]), 1 / 31)


def test_last_factor_varies_fastest():
    grid = dsprites.GRID
    classes = grid.classes(np.array([0, 1, 32, 32 * 32, 40 * 32 * 32, 6 * 40 * 32 * 32]))
    np.testing.assert_array_equal(
        classes,
        [
            [0, 0, 0, 0, 0, 0],
            [0, 0, 0, 0, 0, 1],
            [0, 0, 0, 0, 1, 0],
            [0, 0, 0, 1, 0, 0],
            [0, 0, 1, 0, 0, 0],
            [0, 1, 0, 0, 0, 0],
        ],
    )


def test_indices_undo_classes():
    grid = FactorGrid(("a", "b", "c"), ((1.0, 2.0), (0.5,), (0.0, 0.1, 0.2)))
    every = np.arange(grid.num_images).reshape(2, 3)
    classes = grid.classes(every)
    assert classes.shape == (2, 3, 3)
    np.testing.assert_array_equal(grid.indices(classes), every)
    np.testing.assert_array_equal(grid.factor_values(classes)[1, 2], [2.0, 0.5, 0.2])
    assert grid.varying == (0, 2)
    with pytest.raises(ValueError, match="invalid entry"):
        grid.indices(np.array([0, 0, 3]))


# The renderer


@pytest.mark.parametrize(
    ("scale", "k", "first", "last"),
    [
        # Half the side is 64 * scale * .15; pixel j is inside iff |j + .5 - centre| <= half.
        (0.5, 0, 11, 20),  # centre 16, half 4.8
        (0.5, 15, 27, 35),  # centre 31.48: nine pixels where whole-pixel steps would give ten
        (0.5, 31, 43, 52),  # centre 48
        (1.0, 0, 6, 25),  # half 9.6
        (1.0, 20, 27, 45),  # centre 36.645: 27.045 to 46.245
    ],
)
def test_upright_squares_match_hand_computed_ones(scale, k, first, last):
    grid = _small_grid(shape=[1.0], scale=[scale], orientation=[0.0], posX=[k / 31], posY=[0.5])
    (image,) = _render(grid)
    columns = np.flatnonzero(image.any(axis=0))
    rows = np.flatnonzero(image.any(axis=1))
    assert (columns[0], columns[-1]) == (first, last)
    half = 64 * scale * 0.15  # posY .5 is centre 32, a border between two pixels
    assert (rows[0], rows[-1]) == (np.ceil(31.5 - half), np.floor(31.5 + half))
    assert image.sum() == len(columns) * len(rows)


@pytest.mark.parametrize("shape", [1.0, 2.0, 3.0])
def test_sprites_match_a_point_in_polygon_test(shape):
    rng = np.random.default_rng(int(shape))
    values = dsprites.GRID.values
    grid = _small_grid(
        shape=[shape],
        scale=rng.choice(values[2], 2, replace=False).tolist(),
        orientation=rng.choice(values[3], 4, replace=False).tolist(),
        posX=rng.choice(values[4], 3, replace=False).tolist(),
        posY=rng.choice(values[5], 2, replace=False).tolist(),
    )
    centre = np.arange(64) + 0.5
    angle = np.linspace(0, 2 * np.pi, 37)[:-1]
    outline = {
        1.0: None,
        2.0: np.stack([0.2 * np.cos(angle), 0.113 * np.sin(angle)], axis=1),
        3.0: dsprites_geometry.heart_outline(),
    }[shape]
    for image, factors in zip(
        _render(grid), grid.factor_values(grid.classes(np.arange(grid.num_images))), strict=True
    ):
        _, _, scale, turn, pos_x, pos_y = factors
        dx = (centre[None, :] - 16 - 32 * pos_x) / (64 * scale)
        dy = (centre[:, None] - 16 - 32 * pos_y) / (64 * scale)
        u = np.cos(turn) * dx - np.sin(turn) * dy
        v = np.sin(turn) * dx + np.cos(turn) * dy
        if outline is None:
            inside = (np.abs(u) <= 0.15) & (np.abs(v) <= 0.15)
        else:
            points = np.stack([u.ravel(), v.ravel()], axis=1)
            inside = matplotlib.path.Path(outline).contains_points(points).reshape(64, 64)
        np.testing.assert_array_equal(image, inside)


def test_outlines_are_the_fitted_ones(shared_data):
    reference = json.loads(
        (shared_data.parent / "reference" / "dsprites_geometry.json").read_text()
    )
    fitted = np.array(reference["heart_outline_uv"])
    ours = dsprites_geometry.heart_outline()
    start = np.flatnonzero((ours == fitted[0]).all(axis=1))[0]
    np.testing.assert_array_equal(np.roll(ours, -start, axis=0), fitted)


def test_full_grid_holds_every_image_once(full_packed):
    assert full_packed.shape == (737_280, 512)
    assert full_packed.nbytes == 377_487_360
    area = np.bitwise_count(full_packed.view(np.uint64)).sum(axis=1)
    assert area.min() > 45  # the smallest heart
    by_factor = full_packed.reshape(3, 6, 40, 32, 32, 512)
    # A whole turn brings the sprite back; nothing else repeats along one factor.
    np.testing.assert_array_equal(by_factor[:, :, 0, ::8], by_factor[:, :, 39, ::8])
    assert len(np.unique(by_factor[2, 3, 7].reshape(-1, 512), axis=0)) == 32 * 32
    assert len(np.unique(by_factor[2, 3, :, 7, 7], axis=0)) == 39


def test_position_classes_move_right_and_down(full_packed):
    index = dsprites.GRID.indices
    images = {
        name: np.unpackbits(full_packed[index(np.array(classes))]).reshape(64, 64)
        for name, classes in {
            "start": (0, 1, 5, 3, 4, 4),
            "right": (0, 1, 5, 3, 24, 4),
            "down": (0, 1, 5, 3, 4, 24),
        }.items()
    }
    centroid = {name: np.argwhere(image).mean(axis=0) for name, image in images.items()}
    step = 20 * 32 / 31
    np.testing.assert_allclose(centroid["right"] - centroid["start"], [0, step], atol=0.1)
    np.testing.assert_allclose(centroid["down"] - centroid["start"], [step, 0], atol=0.1)


# Packed bits


def test_unpack_undoes_packbits_inside_jit():
    images = np.random.default_rng(0).integers(0, 2, size=(2, 3, 64, 64), dtype=np.uint8)
    packed = np.packbits(images.reshape(2, 3, -1), axis=-1)
    unpacked = jax.jit(dsprites.unpack)(packed)
    assert unpacked.shape == (2, 3, 64, 64, 1)
    np.testing.assert_array_equal(np.asarray(unpacked)[..., 0], images)
    np.testing.assert_array_equal(unpacked[0, 1], dsprites.unpack(packed[0, 1]))


# The official archive

NPZ_GRID = _small_grid(shape=[1.0, 2.0, 3.0], orientation=dsprites.GRID.values[3][:5])


class _Bomb:
    """Unpickling it creates a file: the reader must never do so."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return pathlib.Path.touch, (self.target,)


def _members(grid, target):
    classes = grid.classes(np.arange(grid.num_images))
    return {
        "metadata": np.array(_Bomb(target), dtype=object),
        "imgs": _render(grid),
        "latents_classes": classes,
        "latents_values": grid.factor_values(classes),
    }


def _save(directory, members):
    path = directory / dsprites_files.NPZ_NAME
    np.savez_compressed(path, **members)
    return path


def test_npz_is_read_in_chunks_and_its_pickle_never(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 7)  # 120 images: 17 chunks and a rest
    target = tmp_path / "executed"
    members = _members(NPZ_GRID, target)
    _save(tmp_path, members)
    data = dsprites.load_dsprites(tmp_path, grid=NPZ_GRID)
    assert data.name == "dSprites"
    assert len(data) == 120
    np.testing.assert_array_equal(
        np.unpackbits(data.packed, axis=1).reshape(-1, 64, 64), members["imgs"]
    )
    assert not target.exists()


def test_npz_reader_never_holds_the_unpacked_images(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 64)
    grid = _small_grid(posX=dsprites.GRID.values[4], posY=dsprites.GRID.values[5])
    path = _save(tmp_path, _members(grid, tmp_path / "executed"))
    tracemalloc.start()
    try:
        packed = dsprites_files.read_npz(path, grid)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(packed) == 8 * 1024
    assert peak < packed.nbytes + 4 * 2**20 < packed.nbytes * 8


def _damage(name):
    """The message a bad archive must give, and what makes it of a good one's members."""
    if name == "float images":
        return "imgs has shape", lambda m: m | {"imgs": m["imgs"].astype(np.float32)}
    if name == "32x32 images":
        return "imgs has shape", lambda m: m | {"imgs": m["imgs"][:, ::2, ::2]}
    if name == "images missing":
        return "imgs has shape", lambda m: m | {"imgs": m["imgs"][:-1]}
    if name == "column order":
        return "column order", lambda m: m | {"imgs": np.asfortranarray(m["imgs"])}
    if name == "pickled images":
        return "imgs has shape", lambda m: m | {"imgs": m["metadata"]}
    if name == "grey images":
        return "pixels other than 0 and 1", lambda m: m | {"imgs": m["imgs"] * np.uint8(255)}
    if name == "no images":
        return "no array imgs", lambda m: {k: v for k, v in m.items() if k != "imgs"}
    if name == "another order":
        return (
            "latents_classes are not",
            lambda m: m | {"latents_classes": m["latents_classes"][::-1].copy()},
        )
    if name == "five factors":
        return (
            "latents_classes has shape",
            lambda m: m | {"latents_classes": m["latents_classes"][:, 1:].copy()},
        )
    assert name == "other values"
    return "latents_values are not", lambda m: m | {"latents_values": m["latents_values"] * 1.01}


@pytest.mark.parametrize(
    "name",
    [
        "float images",
        "32x32 images",
        "images missing",
        "column order",
        "pickled images",
        "grey images",
        "no images",
        "another order",
        "five factors",
        "other values",
    ],
)
def test_wrong_npz_names_the_file_and_the_fault(tmp_path, name):
    message, change = _damage(name)
    target = tmp_path / "executed"
    path = _save(tmp_path, change(_members(NPZ_GRID, target)))
    with pytest.raises(UserError, match=message) as caught:
        dsprites.load_dsprites(tmp_path, grid=NPZ_GRID)
    assert str(path) in str(caught.value)
    assert not target.exists()


def _cut(content, path):
    path.write_bytes(content[: len(content) // 2])


def _flip(content, path):
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        member = archive.getinfo("imgs.npy")
    middle = member.header_offset + member.compress_size // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 255]) + content[middle + 1 :])


def _shorten_member(content, path):
    """A sound archive whose images end before their header says so."""
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            data = old.read(member)
            new.writestr(member, data[:-100] if member == "imgs.npy" else data)


def _lengthen_member(content, path):
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, old.read(member) + (b"x" if member == "imgs.npy" else b""))


def _empty(content, path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [_cut, _flip, _shorten_member, _lengthen_member, _empty])
def test_damaged_npz_is_told(tmp_path, damage):
    path = _save(tmp_path, _members(NPZ_GRID, tmp_path / "executed"))
    damage(path.read_bytes(), path)
    with pytest.raises(UserError, match="truncated or damaged") as caught:
        dsprites_files.read_npz(path, NPZ_GRID)
    assert str(path) in str(caught.value)


def test_a_member_that_is_no_array_is_told(tmp_path):
    path = _save(tmp_path, _members(NPZ_GRID, tmp_path / "executed"))
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as old, zipfile.ZipFile(path, "w") as new:
        for member in old.namelist():
            new.writestr(member, b"not numpy" if member == "imgs.npy" else old.read(member))
    with pytest.raises(UserError, match="imgs is not an array of numbers"):
        dsprites_files.read_npz(path, NPZ_GRID)


# tensorflow-datasets, with its own builder and its own files, but our pictures

TFDS_GRID = _small_grid(shape=[1.0, 2.0, 3.0])


def _prepare_tfds(directory, monkeypatch, *, images, classes):
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    import tensorflow_datasets as tfds

    def examples(self, filepath=None):
        del self, filepath
        for index, (image, (_, *labels)) in enumerate(zip(images, classes, strict=True)):
            # As an encoded file, since tensorflow-datasets needs tensorflow to encode one.
            encoded = io.BytesIO()
            PIL.Image.fromarray(image).save(encoded, "png")
            encoded.seek(0)
            names = ("shape", "scale", "orientation", "x_position", "y_position")
            yield (
                index,
                {"image": encoded}
                | {f"label_{name}": int(label) for name, label in zip(names, labels, strict=True)}
                | {f"value_{name}": 0.0 for name in names},
            )

    builder = tfds.builder("dsprites", data_dir=str(directory), file_format="array_record")
    monkeypatch.setattr(type(builder), "_split_generators", lambda self, _: {"train": examples(0)})
    monkeypatch.setattr(type(builder), "_generate_examples", examples)
    builder.download_and_prepare()


def test_tfds_examples_return_to_the_grids_order(tmp_path, monkeypatch):
    monkeypatch.setattr(dsprites_files, "_CHUNK", 20)
    images = _render(TFDS_GRID)
    classes = TFDS_GRID.classes(np.arange(TFDS_GRID.num_images))
    _prepare_tfds(tmp_path, monkeypatch, images=images, classes=classes)
    data = dsprites.load_dsprites(tmp_path, grid=TFDS_GRID)
    assert data.name == "dSprites"
    np.testing.assert_array_equal(np.unpackbits(data.packed, axis=1).reshape(-1, 64, 64), images)


@pytest.mark.parametrize(
    "fault", ["one twice", "one missing", "one more", "other labels", "grey images"]
)
def test_wrong_tfds_is_told(tmp_path, monkeypatch, fault):
    images = _render(TFDS_GRID)
    classes = TFDS_GRID.classes(np.arange(TFDS_GRID.num_images))
    if fault == "one twice":
        classes[3] = classes[4]
    elif fault == "one missing":
        images, classes = images[1:], classes[1:]
    elif fault == "one more":
        images, classes = np.append(images, images[:1], 0), np.append(classes, classes[:1], 0)
    elif fault == "other labels":
        classes[5, 3] = 39
    else:
        images = images * np.uint8(255)
    _prepare_tfds(tmp_path, monkeypatch, images=images, classes=classes)
    message = {
        "one twice": "fill 47 of the 48",
        "one missing": "47 examples",
        "one more": "49 examples fill 48 of the 48",
        "other labels": "labels are not the factors",
        "grey images": "pixels other than 0 and 1",
    }[fault]
    with pytest.raises(UserError, match=message) as caught:
        dsprites.load_dsprites(tmp_path, source="tfds", grid=TFDS_GRID)
    assert os.fspath(tmp_path / "dsprites") in str(caught.value)


def test_unprepared_tfds_tells_how_to_prepare_it(tmp_path, monkeypatch):
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    (tmp_path / "dsprites").mkdir()
    with pytest.raises(UserError, match="download_and_prepare"):
        dsprites.load_dsprites(tmp_path)


# Choosing a source


def test_without_a_directory_the_equivalent_is_drawn():
    for data in (
        dsprites.load_dsprites(grid=TFDS_GRID),
        dsprites.load_dsprites("", grid=TFDS_GRID),
    ):
        assert data.name == "dSprites-equivalent"
        np.testing.assert_array_equal(data.packed, dsprites_renderer.render(TFDS_GRID))


@pytest.mark.parametrize(
    ("directory", "source", "message"),
    [
        (".", "auto", "holds neither dsprites_ndarray"),
        (".", "npz", "does not exist"),
        (None, "npz", "needs data.dir"),
        (None, "hdf5", "'hdf5' is unknown"),
    ],
)
def test_sources_that_cannot_be(tmp_path, directory, source, message):
    with pytest.raises(UserError, match=message):
        dsprites.load_dsprites(directory and tmp_path / directory, source=source, grid=TFDS_GRID)
