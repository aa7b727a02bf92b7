"""Model names that a config may give."""

import dataclasses

import ml_collections

from vae_attn.config import require, require_each
from vae_attn.errors import UserError
from vae_attn.models import convnets, pretrained, resnet
from vae_attn.models.vae import VAE, Architecture


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks `config.model`, and the layers that other sections name.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    require(config, "model.latents", lambda v: v > 0, "greater than 0")
    layers = architecture(config.model.name, config.data.image_size).attention_layers()
    known = f"of the layers of model.name={config.model.name}: {', '.join(layers)}"

    def all_known(value: str | tuple) -> bool:  # a tuple of the user's may hold anything
        return all(one in layers for one in ((value,) if isinstance(value, str) else value))

    keys = ("attention.layer", "attention.layers", "evaluate.layers")
    require_each(config, keys, all_known, known)
    if config.factor.ad_weight:
        require(config, "factor.ad_layer", lambda v: v in layers, f"one {known}")
    if config.model.name != "mvtec_ad":
        known = "empty unless model.name=mvtec_ad, whose trunk is the ResNet18"
        require(config, "model.pretrained", lambda v: not v, known)
    if not config.model.pretrained:
        known = "False unless model.pretrained gives the weights to keep"
        require(config, "model.freeze_trunk", lambda v: not v, known)


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
