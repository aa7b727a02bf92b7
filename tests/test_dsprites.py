"""dSprites: factor grid, renderer, packed bits, and the choice of a source."""

import json

import jax
import matplotlib.path
import numpy as np
import pytest
from dsprites_grids import render, small_grid

from vae_attn.data import dsprites, dsprites_geometry, dsprites_renderer
from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError


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
    grid = small_grid(shape=[1.0], scale=[scale], orientation=[0.0], posX=[k / 31], posY=[0.5])
    (image,) = render(grid)
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
    grid = small_grid(
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
        render(grid), grid.factor_values(grid.classes(np.arange(grid.num_images))), strict=True
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
        (shared_data.parent / "reference" / "dsprites_geometry.json").read_text(encoding="utf-8")
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


# Choosing a source

TFDS_GRID = small_grid(shape=[1.0, 2.0, 3.0])


def test_without_a_directory_the_equivalent_is_drawn():
    for data in (
        dsprites.load_dsprites(grid=TFDS_GRID),
        dsprites.load_dsprites("", grid=TFDS_GRID),
    ):
        assert data.name == "dSprites-equivalent"
        np.testing.assert_array_equal(data.stored, dsprites_renderer.render(TFDS_GRID))


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
