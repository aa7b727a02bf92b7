"""The MVTec-AD VAE of the report's Figure 5 (d): a ResNet18 trunk and its decoder."""

import flax.linen as nn
import jax

from vae_attn.errors import UserError
from vae_attn.models import pretrained as weights
from vae_attn.models.layers import (
    BatchNorm,
    Conv,
    ConvTranspose,
    Dense,
    MaxPool,
    Residual,
    Unflatten,
    flatten,
)
from vae_attn.models.tables import Row, stack
from vae_attn.models.vae import VAE


def resnet18_trunk(axis_name: str | None = None) -> tuple[Row, ...]:
    """The rows of torchvision's resnet18 without avgpool and fc.

    `layer1` to `layer4` name the outputs of its stages.

    Args:
      axis_name: device axis over which batch statistics are averaged in training.
    """
    return (
        ("conv1", Conv(64, 7, 2, 3, use_bias=False)),
        ("bn1", BatchNorm(axis_name)),
        ("conv1_relu", nn.relu),
        ("maxpool", MaxPool(3, 2, 1)),
        ("layer1_0", Residual(64, 1, axis_name)),
        ("layer1_1", Residual(64, 1, axis_name)),
        ("layer1", jax.nn.identity),
        ("layer2_0", Residual(128, 2, axis_name)),
        ("layer2_1", Residual(128, 1, axis_name)),
        ("layer2", jax.nn.identity),
        ("layer3_0", Residual(256, 2, axis_name)),
        ("layer3_1", Residual(256, 1, axis_name)),
        ("layer3", jax.nn.identity),
        ("layer4_0", Residual(512, 2, axis_name)),
        ("layer4_1", Residual(512, 1, axis_name)),
        ("layer4", jax.nn.identity),
    )


def mvtec_ad(
    *,
    latents: int,
    image_shape: tuple[int, int, int],
    axis_name: str | None = None,
    pretrained: str = "",
    freeze_trunk: bool = False,
    **options: object,
) -> VAE:
    """Figure 5 (d) for square images whose side is a multiple of 64, or 224.

    The table leaves out the Flatten after the trunk and the Unflatten(1024, 4, 4) in the decoder;
    the report added both (its caption), and so do we. At 224 the trunk gives 7 x 7 features; the
    decoder then starts from 7 x 7 too and needs one doubling less.

    Args:
      latents: dimension of the latent space.
      image_shape: height, width and channels of the images; the table's is (256, 256, 3).
      axis_name: device axis over which batch statistics are averaged in training.
      pretrained: where the trunk's ImageNet weights come from; with any, the encoder normalises
        its input as they expect. They are put in place by `training.trunk`.
      freeze_trunk: whether batch normalisation in the trunk keeps its running statistics in
        training. What keeps its parameters is `training.trunk.freeze`.
      **options: of other models.

    Returns:
      The VAE; 72,803,363 parameters at 256 with 32 latents and 3 channels.

    Raises:
      UserError: for images of another shape.
    """
    del options
    size, _, channels = image_shape
    if size != 224 and (size % 64 or size < 64):
        raise UserError(
            f"model.name=mvtec_ad takes 224 or a multiple of 64, and data.image_size is {size}: "
            "set data.image_size=256."
        )
    if pretrained and channels != 3:
        raise UserError(
            f"model.pretrained={pretrained!r} gives weights for colour images, and data.channels "
            f"is {channels}: set data.channels=3, or leave out model.pretrained."
        )
    trunk = resnet18_trunk(axis_name)
    if size == 224:
        start, widths = 7, (512, 256, 128, 64)
    else:
        start, widths = size // 64, (512, 256, 128, 64, 32)
    upsampling: list[Row] = []
    for i, width in enumerate(widths, 1):
        upsampling += [
            (f"convtr{i}", ConvTranspose(width, 4, 2, 1)),
            (f"bn{i}", BatchNorm(axis_name)),
            (f"convtr{i}_relu", nn.relu),
        ]
    return VAE(
        image_shape=image_shape,
        latents=latents,
        encoder=stack(
            *trunk,
            ("flatten", flatten),
            ("fc1", Dense(1024)),
            frozen=tuple(name for name, _ in trunk) if freeze_trunk else (),
        ),
        decoder=stack(
            ("fc1", Dense(1024)),
            ("fc2", Dense(1024 * start * start)),
            ("unflatten", Unflatten(start, start, 1024)),
            *upsampling,
            (f"convtr{len(widths) + 1}", ConvTranspose(channels, 4, 2, 1)),
        ),
        input_mean=weights.IMAGENET_MEAN if pretrained else (),
        input_std=weights.IMAGENET_STD if pretrained else (),
    )
