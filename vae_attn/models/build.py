"""Model names that a config may give."""

import dataclasses

from vae_attn.errors import UserError
from vae_attn.models import convnets, pretrained, resnet
from vae_attn.models.vae import VAE, Architecture


def architecture(name: str, image_size: int) -> Architecture:
    """The architecture of a model name.

    Args:
      name: `mnist`, `ucsd_ped1`, `dsprites` (convolutional, fixed sizes), `mvtec_ad` (ResNet18) or
        `convnet` (the lighter one beside it).
      image_size: height and width of the images.

    Returns:
      Its tables.

    Raises:
      UserError: for an unknown name, or a size that the tables do not fit.
    """
    fixed = {a.name: a for a in (convnets.MNIST, convnets.UCSD_PED1, convnets.DSPRITES)}
    if name in fixed:
        side = fixed[name].image_shape[0]
        if image_size != side:
            raise UserError(
                f"model.name={name} takes images of {side} x {side} pixels, and "
                f"data.image_size is {image_size}: set data.image_size={side}."
            )
        return fixed[name]
    if name == "mvtec_ad":
        if image_size != 224 and (image_size % 64 or image_size < 64):
            raise UserError(
                f"model.name=mvtec_ad takes 224 or a multiple of 64, and data.image_size is "
                f"{image_size}: set data.image_size=256."
            )
        return resnet.mvtec_ad(image_size)
    if name == "convnet":
        if image_size % 16 or image_size < 16:
            raise UserError(
                f"model.name=convnet takes a multiple of 16, and data.image_size is {image_size}: "
                "set data.image_size=128."
            )
        return convnets.convnet(image_size)
    known = ", ".join([*fixed, "mvtec_ad", "convnet"])
    raise UserError(f"model.name={name!r} is unknown; choose one of {known}.")


def build(
    name: str,
    *,
    image_size: int,
    latents: int,
    axis_name: str | None = None,
    imagenet_input: bool = False,
    freeze_trunk: bool = False,
) -> VAE:
    """The VAE of a model name.

    Args:
      name: see `architecture`.
      image_size: likewise.
      latents: dimension of the latent space.
      axis_name: device axis over which batch statistics are averaged in training.
      imagenet_input: whether the encoder normalises its input as its ImageNet weights expect.
      freeze_trunk: whether batch normalisation in the trunk keeps its statistics in training.

    Returns:
      The model.
    """
    tables = architecture(name, image_size)
    if imagenet_input:
        tables = dataclasses.replace(
            tables, input_mean=pretrained.IMAGENET_MEAN, input_std=pretrained.IMAGENET_STD
        )
    return VAE(tables, latents, axis_name, freeze_trunk)
