"""Anomalies drawn on normal images: what changed is what the mask says, and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_attn.data import drawn_anomalies
from vae_attn.data.drawn_anomalies import SHAPES

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (2, 40, 32, 3), dtype=np.uint8)
IMAGE, OTHER = (jnp.asarray(image, jnp.float32) / 255 for image in IMAGES)


@pytest.fixture(scope="module", params=SHAPES)
def drawn(request):
    draw = jax.jit(
        jax.vmap(
            lambda key: drawn_anomalies.draw(key, IMAGE, OTHER, shapes=request.param),
        )
    )
    images, masks = draw(jax.random.split(jax.random.key(1), 200))
    again, _ = draw(jax.random.split(jax.random.key(1), 200))
    np.testing.assert_array_equal(images, again)
    return np.asarray(images), np.asarray(masks)


def test_the_mask_is_what_changed_by_more_than_the_threshold(drawn):
    images, masks = drawn
    levels = np.rint(255 * images)
    np.testing.assert_allclose(levels, 255 * images, atol=1e-3)  # as a file would have them
    changed = np.abs(levels - IMAGES[0]).max(axis=3)
    np.testing.assert_array_equal(masks, changed > 6)
    assert (changed[~masks] == 0).all()
    assert images.min() >= 0
    assert images.max() <= 1


def test_anomalies_are_many_and_small(drawn):
    _, masks = drawn
    areas = masks.mean(axis=(1, 2))
    assert len({mask.tobytes() for mask in masks}) > 190
    assert (areas > 0).mean() > 0.95
    assert 0.005 < np.median(areas) < 0.15
    # At every place.
    assert masks.any(axis=0).mean() > 0.99


def test_filling_is_of_all_three_kinds():
    black, white = jnp.zeros((16, 16, 1)), jnp.ones((16, 16, 1))
    keys = jax.random.split(jax.random.key(0), 300)
    fill = jax.jit(jax.vmap(lambda key: drawn_anomalies._filling(key, black, white)))(keys)
    values = np.asarray(fill)[:, 0, 0, 0]
    assert (np.ptp(np.asarray(fill), axis=(1, 2, 3)) == 0).all()
    # White toned is at least .4, black toned at most .2; colours alone lie between.
    other, own = (values >= 0.4).mean(), (values <= 0.2).mean()
    between = ((values > 0.2) & (values < 0.4)).mean()
    assert other == pytest.approx(1 / 3 + 0.6 / 3, abs=0.1)
    assert own == pytest.approx(1 / 3 + 0.2 / 3, abs=0.1)
    assert between == pytest.approx(0.2 / 3, abs=0.05)
