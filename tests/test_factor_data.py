"""Images of a factor grid: the same record for dSprites and for a grid of your own."""

import numpy as np
import pytest
from dsprites_grids import render, small_grid
from small_data import small_data

from vae_attn.data import dsprites
from vae_attn.data.factor_grid import FactorData, FactorGrid

RNG = np.random.default_rng(0)
GRID = FactorGrid(("hue", "size"), ((0.0, 0.5, 1.0), (1.0, 2.0)))
COLOUR = RNG.integers(0, 256, (6, 8, 10, 3), dtype=np.uint8)


def test_a_grid_of_colour_images_needs_no_more_than_its_pixels():
    data = FactorData("cubes", GRID, COLOUR)
    assert len(data) == 6
    assert data.image_shape == (8, 10, 3)
    np.testing.assert_array_equal(data.train, COLOUR)
    np.testing.assert_array_equal(data.as_uint8(data.train), COLOUR)
    np.testing.assert_allclose(data.pixels(data.stored[2:4]), COLOUR[2:4] / 255, rtol=1e-6)
    sample = data.sample(4, seed=3)
    assert len({image.tobytes() for image in sample}) == 4
    np.testing.assert_array_equal(sample, data.sample(4, seed=3))
    assert len(data.sample(100)) == len(data.validation) == 6


def test_dsprites_is_such_a_record():
    grid = small_grid(shape=[1.0, 2.0, 3.0])
    data = dsprites.load_dsprites(grid=grid)
    assert data.image_shape == (64, 64, 1)
    assert data.stored.shape == (len(data), 512)
    np.testing.assert_array_equal(data.as_uint8(data.stored)[..., 0], 255 * render(grid))
    np.testing.assert_array_equal(data.pixels(data.stored)[..., 0], render(grid))


def test_many_images_become_pixels_in_parts():
    grid = FactorGrid(("place",), (tuple(range(2500)),))
    stored = RNG.integers(0, 256, (2500, 1, 1, 1), dtype=np.uint8)
    data = FactorData("dots", grid, stored)
    np.testing.assert_array_equal(data.as_uint8(stored), stored)
    assert len(data.as_uint8(stored[:0])) == 0


def test_a_number_of_images_that_does_not_fill_the_grid_is_refused():
    with pytest.raises(ValueError, match="cubes: 5 images for a grid of 6 combinations"):
        FactorData("cubes", GRID, COLOUR[:5])


def test_data_of_normal_images_gives_pixels_alike():
    normal_data = small_data(COLOUR)
    assert normal_data.image_shape == (8, 10, 3)
    np.testing.assert_allclose(normal_data.pixels(normal_data.train), COLOUR / 255, rtol=1e-6)
