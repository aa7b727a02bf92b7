"""Projection against a closed form."""

import jax.numpy as jnp
import numpy as np

from vae_attn.counterparts import project


def test_no_steps_leave_the_latents():
    z = jnp.ones((2, 3))
    found = project(lambda z: z[:, None, :, None], jnp.zeros((2, 1, 3, 1)), z, steps=0)
    np.testing.assert_array_equal(found, z)


def test_projection_ignores_a_defect_as_a_median_does():
    """decode repeats z over five pixels; one is defective. The minimum is at the others' value.

    With |.| the energy's slope at z = 0.5 changes sign (four pixels pull up, one down and the
    prior), so that the defect does not move it; the encoder's start, the mean, is moved by it.
    """
    image = jnp.array([0.5, 0.5, 0.5, 0.5, 3.0]).reshape(1, 1, 5, 1)

    def decode(z):
        return jnp.broadcast_to(z[:, None, :, None], (1, 1, 5, 1))

    start = image.mean(axis=(1, 2))
    found = project(decode, image, start, steps=300, learning_rate=0.02)
    assert float(start[0, 0]) == 1.0
    np.testing.assert_allclose(found, 0.5, atol=0.03)


def test_prior_weight_pulls_to_zero():
    image = jnp.full((1, 1, 1, 1), 2.0)
    found = project(
        lambda z: z[:, None, :, None], image, jnp.full((1, 1), 1.0), steps=400, prior_weight=2.0
    )
    np.testing.assert_allclose(found, 0.5, atol=0.05)  # |2 - z| + z^2 is least at 1/2


def test_images_do_not_interact():
    images = jnp.array([0.2, 0.9]).reshape(2, 1, 1, 1)

    def decode(z):
        return z[:, None, :, None]

    together = project(decode, images, jnp.zeros((2, 1)), steps=5)
    alone = project(decode, images[1:], jnp.zeros((1, 1)), steps=5)
    np.testing.assert_allclose(together[1:], alone, rtol=1e-6)
