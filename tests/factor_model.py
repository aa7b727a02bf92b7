"""A small VAE of 8 x 8 images for tests of the disentangling objectives, and images for it."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae_attn.models.layers import Conv, ConvTranspose, Dense, Unflatten, flatten
from vae_attn.models.tables import stack
from vae_attn.models.vae import VAE

LATENTS = 4
MODEL = VAE(
    image_shape=(8, 8, 1),
    latents=LATENTS,
    encoder=stack(
        ("conv1", Conv(4, 4, 2, 1)),
        ("conv1_relu", nn.relu),
        ("conv2", Conv(6, 3, 1, 1)),
        ("conv2_relu", nn.relu),
        ("conv3", Conv(6, 3, 1, 1)),
        ("conv3_relu", nn.relu),
        ("flatten", flatten),
        ("fc1", Dense(8)),
        ("fc1_relu", nn.relu),
    ),
    decoder=stack(
        ("fc1", Dense(16)),
        ("unflatten", Unflatten(4, 4, 1)),
        ("convtr1", ConvTranspose(1, 4, 2, 1)),
    ),
)


def model(*, latents, image_shape, **options):
    """For `model.name=factor_model:model`."""
    assert (latents, image_shape) == (MODEL.latents, MODEL.image_shape)
    return MODEL


IMAGES = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
PIXELS = jnp.asarray(IMAGES, jnp.float32) / 255.0


@functools.cache
def vae_params():
    return jax.jit(MODEL.init)(jax.random.key(3), PIXELS[:1], jnp.zeros((1, LATENTS)))["params"]
