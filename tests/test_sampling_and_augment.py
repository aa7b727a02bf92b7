"""Which images a step sees, and what is done to them."""

import jax
import numpy as np
import scipy.ndimage

from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation


def test_every_epoch_shows_every_image_once():
    stream = np.concatenate(
        [
            sampling.batch_indices(seed=3, step=step, batch_size=8, num_examples=20)
            for step in range(10)
        ]
    )
    epochs = stream.reshape(4, 20)
    for epoch in epochs:
        assert sorted(epoch.tolist()) == list(range(20))
    assert len({tuple(epoch) for epoch in epochs}) == 4


def test_a_batch_larger_than_the_data():
    indices = sampling.batch_indices(seed=0, step=1, batch_size=50, num_examples=20)
    assert np.bincount(indices, minlength=20).min() >= 2


def test_seeds_differ():
    a, b = (
        sampling.batch_indices(seed=seed, step=0, batch_size=20, num_examples=20) for seed in (0, 1)
    )
    assert (a != b).any()


def test_orders_of_many_seeds_are_shuffled_once_each():
    sampling._permutation.cache_clear()
    for step in range(6):
        for seed in range(5):
            for stream in (0, 1):
                sampling.batch_indices(
                    seed=seed, step=step, batch_size=2, num_examples=20, stream=stream
                )
    assert sampling._permutation.cache_info().misses == 10


def augmented(augment, image, count=64):
    keys = jax.random.split(jax.random.key(0), count)
    return np.asarray(jax.jit(jax.vmap(augment, in_axes=(0, None)))(keys, image))


IMAGE = np.random.default_rng(0).uniform(size=(9, 9, 2)).astype(np.float32)


def test_no_augmentation_is_the_identity():
    np.testing.assert_array_equal(augmented(Augmentation(), IMAGE, 2)[0], IMAGE)


def test_mirrors_are_exact_and_all_happen():
    found = augmented(Augmentation(mirror_horizontal=True, mirror_vertical=True), IMAGE)
    variants = [IMAGE, IMAGE[:, ::-1], IMAGE[::-1], IMAGE[::-1, ::-1]]
    nearest = [int(np.argmin([np.abs(x - v).max() for v in variants])) for x in found]
    assert set(nearest) == {0, 1, 2, 3}
    for x, kind in zip(found, nearest, strict=True):
        np.testing.assert_allclose(x, variants[kind], atol=1e-5)


def test_rotation_keeps_to_its_limit_and_turns_about_the_centre():
    y, x = np.mgrid[:33, :33] - 16.0
    bar = (np.hypot(y, x - 10) < 3).astype(np.float32)[..., None]  # a dot to the right
    found = augmented(Augmentation(rotation=30.0), bar)[..., 0]
    centres = np.array([scipy.ndimage.center_of_mass(image) for image in found]) - 16
    np.testing.assert_allclose(np.hypot(*centres.T), 10, atol=0.15)
    angles = np.degrees(np.arctan2(centres[:, 0], centres[:, 1]))
    assert np.abs(angles).max() <= 30.5
    assert angles.max() > 20
    assert angles.min() < -20


def test_shift_keeps_to_its_limit():
    dot = np.zeros((21, 21, 1), np.float32)
    dot[10, 10] = 1
    found = augmented(Augmentation(shift=3.0), dot)[..., 0]
    centres = np.array([scipy.ndimage.center_of_mass(image) for image in found]) - 10
    assert 2 < np.abs(centres).max() <= 3.0001
