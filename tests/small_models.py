"""Small models for tests, as `model.name=small_models:NAME`: each trains in a second or two."""

import flax.linen as nn
import jax

from vae_attn.models.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    Residual,
    Unflatten,
    flatten,
)
from vae_attn.models.tables import stack
from vae_attn.models.vae import VAE

# Height and width, channels: what each is made for, though most take other sizes too.
SHAPES = {
    "digits": (28, 1),
    "deep_digits": (28, 1),
    "shallow": (28, 1),
    "plain": (8, 1),
    "normalized": (8, 1),
    "residual": (8, 1),
    "trunk": (8, 3),
    "shapes": (64, 1),
}


def values(name, *, size=None, channels=None):
    """The keys of a config that choose the model."""
    own_size, own_channels = SHAPES[name]
    return {
        "model.name": f"small_models:{name}",
        "data.image_size": size or own_size,
        "data.channels": channels or own_channels,
    }


def use(config, name, **shape):
    """Chooses the model in a config, which is returned."""
    config.update_from_flattened_dict(values(name, **shape))
    return config


def flags(name):
    """The same on a command line; the program finds this module beside its script."""
    return [f"--config.{key}={value}" for key, value in values(name).items()]


def digits(*, latents, image_shape, **options):
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", Conv(4, 4, 4, 0)),
            ("conv1_relu", nn.relu),
            ("conv2", Conv(4, 3, 1, 1)),
            ("flatten", flatten),
        ),
        decoder=stack(
            ("fc1", Dense(196)),
            ("fc1_relu", nn.relu),
            ("unflatten", Unflatten(7, 7, 4)),
            ("convtr1", ConvTranspose(1, 4, 4, 0)),
        ),
    )


def deep_digits(*, latents, image_shape, **options):
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", Conv(8, 4, 2, 1)),
            ("conv1_relu", nn.relu),
            ("conv2", Conv(8, 4, 2, 1)),
            ("conv2_relu", nn.relu),
            ("flatten", flatten),
        ),
        decoder=stack(
            ("fc1", Dense(392)),
            ("fc1_relu", nn.relu),
            ("unflatten", Unflatten(7, 7, 8)),
            ("convtr1", ConvTranspose(8, 4, 2, 1)),
            ("convtr1_relu", nn.relu),
            ("convtr2", ConvTranspose(1, 4, 2, 1)),
        ),
    )


def shallow(*, latents, image_shape, **options):
    """One layer of 4 x 4 patches, for any multiple of four pixels."""
    size, _, channels = image_shape
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(("conv1", Conv(4, 4, 4, 0)), ("conv1_relu", nn.relu), ("flatten", flatten)),
        decoder=stack(
            ("fc1", Dense((size // 4) ** 2)),
            ("unflatten", Unflatten(size // 4, size // 4, 1)),
            ("convtr1", ConvTranspose(channels, 4, 4, 0)),
        ),
    )


def plain(*, latents, image_shape, **options):
    return _of_encoder(latents, image_shape, ("conv1", Conv(4, 4, 2, 1)), ("conv1_relu", nn.relu))


def normalized(*, latents, image_shape, axis_name=None, **options):
    return _of_encoder(
        latents,
        image_shape,
        ("conv1", Conv(4, 4, 2, 1)),
        ("bn1", BatchNorm(axis_name)),
        ("conv1_relu", nn.relu),
    )


def residual(*, latents, image_shape, axis_name=None, **options):
    return _of_encoder(
        latents,
        image_shape,
        ("conv1", Conv(4, 4, 2, 1)),
        ("bn1", BatchNorm(axis_name)),
        ("conv1_relu", nn.relu),
        ("layer1_0", Residual(6, 2, axis_name)),
    )


def trunk(*, latents, image_shape, axis_name=None, freeze_trunk=False, **options):
    """A ResNet's trunk in small, whose batch normalisation can be frozen."""
    rows = (
        ("conv1", Conv(4, 4, 2, 1, use_bias=False)),
        ("bn1", BatchNorm(axis_name)),
        ("layer1", jax.nn.identity),
    )
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            *rows,
            ("flatten", flatten),
            ("fc1", Dense(5)),
            frozen=tuple(name for name, _ in rows) if freeze_trunk else (),
        ),
        decoder=stack(
            ("fc1", Dense(16)),
            ("unflatten", Unflatten(4, 4, 1)),
            ("bn1", BatchNorm(axis_name)),
            ("convtr1", ConvTranspose(image_shape[-1], 4, 2, 1)),
        ),
    )


def shapes(*, latents, image_shape, **options):
    """For dSprites."""
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", Conv(4, 8, 8, 0)),
            ("conv1_relu", nn.relu),
            ("conv2", Conv(8, 4, 2, 1)),
            ("conv2_relu", nn.relu),
            ("flatten", flatten),
        ),
        decoder=stack(
            ("fc1", Dense(128)),
            ("fc1_relu", nn.relu),
            ("unflatten", Unflatten(8, 8, 2)),
            ("convtr1", ConvTranspose(1, 8, 8, 0)),
        ),
    )


def fixed(**options):
    """Whatever is asked for."""
    return digits(latents=3, image_shape=(28, 28, 1))


def _of_encoder(latents, image_shape, *rows):
    size, _, channels = image_shape
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(*rows, ("flatten", flatten)),
        decoder=stack(
            ("fc1", Dense((size // 2) ** 2)),
            ("unflatten", Unflatten(size // 2, size // 2, 1)),
            ("convtr1", ConvTranspose(channels, 4, 2, 1)),
        ),
    )
