"""The three convolutional VAEs of the report's Figure 5: MNIST (a), UCSD Ped1 (b), dSprites (c).

And a fourth, of ours, which is light enough to learn colour images without an accelerator.
Decoders end before the sigmoid: losses take logits. In all tables the second head (the log
variance) is a twin of the last encoder row, as in the authors' code.
"""

import functools

import flax.linen as nn

from vae_attn.errors import UserError
from vae_attn.models.layers import Conv, ConvTranspose, Dense, Unflatten, flatten
from vae_attn.models.tables import Row, stack
from vae_attn.models.vae import VAE


def mnist(*, latents: int, image_shape: tuple[int, int, int], **options: object) -> VAE:
    """Figure 5 (a), for grey images of 28 x 28; 13,216,193 parameters with 32 latents.

    The ReLU that the table repeats after Unflatten changes nothing and is left out.

    Args:
      latents: dimension of the latent space.
      image_shape: height, width and channels of the images.
      **options: of other models.

    Raises:
      UserError: for images of another shape.
    """
    del options
    _require_shape("mnist", image_shape, side=28)
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", Conv(64, 4, 2, 1)),
            ("conv1_relu", nn.relu),
            ("conv2", Conv(128, 4, 2, 1)),
            ("conv2_relu", nn.relu),
            ("flatten", flatten),
            ("fc1", Dense(1024)),
            ("fc1_relu", nn.relu),
        ),
        decoder=stack(
            ("fc1", Dense(1024)),
            ("fc1_relu", nn.relu),
            ("fc2", Dense(6272)),
            ("fc2_relu", nn.relu),
            ("unflatten", Unflatten(7, 7, 128)),
            ("convtr1", ConvTranspose(64, 4, 2, 1)),
            ("convtr1_relu", nn.relu),
            ("convtr2", ConvTranspose(1, 4, 2, 1)),
        ),
    )


def ucsd_ped1(*, latents: int, image_shape: tuple[int, int, int], **options: object) -> VAE:
    """Figure 5 (b), for images of 100 x 100; grey, with 32 latents, 77,243,073 parameters.

    The table drops the encoder's Linear(32) and the decoder's Linear(1024) between the two ReLUs
    around the latents; the parameter count of the report's Table 1 has them.

    Args:
      latents: dimension of the latent space.
      image_shape: height, width and channels of the images.
      **options: of other models.

    Raises:
      UserError: for images of another shape.
    """
    del options
    _require_shape("ucsd_ped1", image_shape, side=100, grey=False)
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", Conv(64, 4, 2, 1)),
            ("conv1_relu", nn.relu),
            ("conv2", Conv(128, 4, 2, 1)),
            ("conv2_relu", nn.relu),
            ("conv3", Conv(256, 4, 2, 1)),
            ("conv3_relu", nn.relu),
            ("flatten", flatten),
            ("fc1", Dense(1024)),
            ("fc1_relu", nn.relu),
        ),
        decoder=stack(
            ("fc1", Dense(1024)),
            ("fc1_relu", nn.relu),
            ("fc2", Dense(36864)),
            ("fc2_relu", nn.relu),
            ("unflatten", Unflatten(12, 12, 256)),
            ("convtr1", ConvTranspose(128, 5, 2, 1)),
            ("convtr1_relu", nn.relu),
            ("convtr2", ConvTranspose(64, 4, 2, 1)),
            ("convtr2_relu", nn.relu),
            ("convtr3", ConvTranspose(image_shape[2], 4, 2, 1)),
        ),
    )


def dsprites(*, latents: int, image_shape: tuple[int, int, int], **options: object) -> VAE:
    """Figure 5 (c), for grey images of 64 x 64, with a public reproduction's N(0, 0.02).

    The table gives conv5 padding 1 and a 1 x 1 output; only padding 0 gives that. Its 1 x 1
    convolutions on 1 x 1 maps are linear layers.

    Args:
      latents: dimension of the latent space.
      image_shape: height, width and channels of the images.
      **options: of other models.

    Raises:
      UserError: for images of another shape.
    """
    del options
    return _dsprites("dsprites", latents, image_shape, initialization="normal")


def dsprites_glorot(*, latents: int, image_shape: tuple[int, int, int], **options: object) -> VAE:
    """As `dsprites`, with Glorot's uniform initialisation, as in disentanglement_lib."""
    del options
    return _dsprites("dsprites_glorot", latents, image_shape, initialization="glorot")


def _dsprites(
    name: str, latents: int, image_shape: tuple[int, int, int], *, initialization: str
) -> VAE:
    _require_shape(name, image_shape, side=64)
    conv, conv_transpose, dense = (
        functools.partial(layer, initialization=initialization)
        for layer in (Conv, ConvTranspose, Dense)
    )
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            ("conv1", conv(32, 4, 2, 1)),
            ("conv1_relu", nn.relu),
            ("conv2", conv(32, 4, 2, 1)),
            ("conv2_relu", nn.relu),
            ("conv3", conv(64, 4, 2, 1)),
            ("conv3_relu", nn.relu),
            ("conv4", conv(64, 4, 2, 1)),
            ("conv4_relu", nn.relu),
            ("conv5", conv(128, 4, 1, 0)),
            ("conv5_relu", nn.relu),
            ("flatten", flatten),
        ),
        decoder=stack(
            ("fc1", dense(128)),
            ("fc1_relu", nn.relu),
            ("unflatten", Unflatten(1, 1, 128)),
            ("convtr1", conv_transpose(64, 4, 1, 0)),
            ("convtr1_relu", nn.relu),
            ("convtr2", conv_transpose(64, 4, 2, 1)),
            ("convtr2_relu", nn.relu),
            ("convtr3", conv_transpose(32, 4, 2, 1)),
            ("convtr3_relu", nn.relu),
            ("convtr4", conv_transpose(32, 4, 2, 1)),
            ("convtr4_relu", nn.relu),
            ("convtr5", conv_transpose(1, 4, 2, 1)),
        ),
        initialization=initialization,
    )


def convnet(*, latents: int, image_shape: tuple[int, int, int], **options: object) -> VAE:
    """A plain VAE of four strided convolutions, for machines without an accelerator.

    Not in the report: it stands in for its ResNet18, which takes hours without an accelerator.

    Args:
      latents: dimension of the latent space.
      image_shape: height, width and channels of the images, square, the side a multiple of 16.
      **options: of other models.

    Raises:
      UserError: for images of another shape.
    """
    del options
    size, _, channels = image_shape
    if size % 16 or size < 16:
        raise UserError(
            f"model.name=convnet takes a multiple of 16, and data.image_size is {size}: "
            "set data.image_size=128."
        )
    widths, side = (32, 64, 128, 256), size // 16
    encoder: list[Row] = []
    for i, width in enumerate(widths, 1):
        encoder += [(f"conv{i}", Conv(width, 4, 2, 1)), (f"conv{i}_relu", nn.relu)]
    decoder: list[Row] = [
        ("fc1", Dense(256)),
        ("fc1_relu", nn.relu),
        ("fc2", Dense(side * side * widths[-1])),
        ("fc2_relu", nn.relu),
        ("unflatten", Unflatten(side, side, widths[-1])),
    ]
    for i, width in enumerate(widths[-2::-1], 1):
        decoder += [(f"convtr{i}", ConvTranspose(width, 4, 2, 1)), (f"convtr{i}_relu", nn.relu)]
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(*encoder, ("flatten", flatten), ("fc1", Dense(256)), ("fc1_relu", nn.relu)),
        decoder=stack(*decoder, ("convtr4", ConvTranspose(channels, 4, 2, 1))),
    )


def _require_shape(
    name: str, image_shape: tuple[int, int, int], *, side: int, grey: bool = True
) -> None:
    size, _, channels = image_shape
    if size != side:
        raise UserError(
            f"model.name={name} takes images of {side} x {side} pixels, and data.image_size is "
            f"{size}: set data.image_size={side}."
        )
    if grey and channels != 1:
        raise UserError(
            f"model.name={name} takes grey images, and data.channels is {channels}: "
            "set data.channels=1."
        )
