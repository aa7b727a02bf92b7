"""Builds the model that a config names: one of ours, or anyone's.

`config.model.name` is a name of `MODELS`, or `package.module:function` for a model of one's own.
Both are functions, called with keywords:

    def my_vae(*, latents, image_shape, axis_name, **options):
        return MyVAE(latents, image_shape[-1], width=options.get("width", 32))

* `latents` is `config.model.latents`, `image_shape` is (height, width, channels), and `axis_name`
  the device axis over which batch normalisation averages in training
  (`flax.linen.BatchNorm(axis_name=axis_name)`).
* `options` has every other key of `config.model`: `pretrained` and `freeze_trunk`, which are for
  `mvtec_ad` alone, and those that a config file adds (`config.model.width = 8`).
* `image_shape` comes from `data.image_size` and `data.channels` (1 or 3). With `data.channels=0`
  our models take what they were made for; for a model of one's own it must be set.

The function returns a Flax module (`flax.linen`) with three methods:

    class MyVAE(nn.Module):
        latents: int
        channels: int
        width: int
        layers = ("conv1", "conv2")  # optional: for messages, and to check names of layers by

        def setup(self):                                   # layers are shared by several methods
            ...

        def features(self, images, layer, *, train):       # images in [0, 1]
            ...                                            # (batch, h, w, k): two axes of pixels
        def head(self, features, layer, *, train):
            ...                                            # mean, logvar: each (batch, latents)
        def decode(self, z, *, train):
            ...                                            # logits: (batch, *image_shape)

* The names of layers are the module's own: `attention.layer`, `attention.layers`,
  `evaluate.layers` and `factor.ad_layer` name them. For every one of them,
  `head(features(images, layer), layer)` is the encoder.
* `decode` ends before the sigmoid: the losses take logits.
* Its variables are `params` and, where there is batch normalisation, `batch_stats`; with
  `train=True` it may use and update the batch's statistics. It draws no random numbers.
* The module is imported by its name: its folder is the current one, on PYTHONPATH or installed.

All else is added by `adaptor.Adaptor`, so that the model is trained, scored, explained, exported
and loaded like ours. `validate` checks all of this before a run, and reports what is wrong in one
sentence. A function that returns `vae.VAE`, made of a table of layers, is as good.
"""

import importlib
import traceback
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import ml_collections

from vae_attn.config import require
from vae_attn.errors import UserError, shown
from vae_attn.models import contract, convnets, resnet
from vae_attn.models.adaptor import Adaptor
from vae_attn.models.model import Model
from vae_attn.models.vae import VAE

MODELS: dict[str, Callable[..., VAE]] = {
    "mnist": convnets.mnist,
    "ucsd_ped1": convnets.ucsd_ped1,
    "dsprites": convnets.dsprites,
    "dsprites_glorot": convnets.dsprites_glorot,
    "mvtec_ad": resnet.mvtec_ad,
    "convnet": convnets.convnet,
}
_COLOUR = ("mvtec_ad", "convnet")  # where data.channels is 0; the others are grey
_OWN_KEYS = ("name", "latents", "pretrained", "freeze_trunk")  # of config.model, for all models
_GIVEN = ("image_shape", "image_size", "channels", "axis_name", "layer")


def build(
    name: str,
    *,
    latents: int,
    image_size: int,
    channels: int = 0,
    layer: str = "",
    axis_name: str | None = None,
    **options: Any,
) -> Model:
    """The model of a name.

    Args:
      name: of `MODELS`, or `package.module:function`.
      latents: dimension of the latent space.
      image_size: height and width of the images.
      channels: of the images, 1 or 3; 0 is what a model of `MODELS` was made for.
      layer: at which a model of one's own is cut to encode; whichever, the result is the same.
      axis_name: device axis over which batch statistics are averaged in training.
      **options: for the function, see this module's docstring.

    Returns:
      The model.

    Raises:
      UserError: for an unknown name, a function that cannot be imported or fails, an image shape
        that does not fit, or a returned object that is no model.
    """
    function = _function(name)
    shape = image_shape(name, image_size, channels)
    try:
        module = function(latents=latents, image_shape=shape, axis_name=axis_name, **options)
    except UserError:
        raise
    except Exception as error:  # it is anyone's code
        raise UserError(
            f"model.name={shown(repr(name))} cannot be built: the function raised "
            f"{contract.reason(error)}{_place(error)}; it is called with latents, image_shape, "
            "axis_name and **options."
        ) from error
    if isinstance(module, VAE):
        if (module.image_shape, module.latents) != (shape, latents):
            raise UserError(
                f"model.name={shown(repr(name))}: the function returned a VAE of {module.latents} "
                f"latents for images of {module.image_shape}, and was asked for {latents} and "
                f"{shape}: set model.latents, data.image_size and data.channels as it needs them."
            )
        return module
    _require_methods(module, name)
    return Adaptor(module, shape, latents, layer)


def from_config(config: ml_collections.ConfigDict, *, axis_name: str | None = None) -> Model:
    """The model of a config's sections `model`, `data` and `attention`; see `build`."""
    options = config.model.to_dict()
    if clashes := [key for key in _GIVEN if key in options]:
        raise UserError(
            f"config.model.{clashes[0]} is no key of a config file's, as the package gives the "
            f"model its {', '.join(_GIVEN)}: choose another name for the key."
        )
    return build(
        options.pop("name"),
        image_size=config.data.image_size,
        channels=config.data.channels,
        layer=config.attention.layer,
        axis_name=axis_name,
        **options,
    )


def image_shape(name: str, image_size: int, channels: int) -> tuple[int, int, int]:
    """Height, width and channels of the images that a model is built for.

    Args:
      name: see `build`.
      image_size: likewise.
      channels: likewise.

    Raises:
      UserError: if a model of one's own is not given its channels.
    """
    if name not in MODELS and ":" not in name:
        raise _unknown(name)
    if not channels and name not in MODELS:
        raise UserError(
            f"model.name={shown(repr(name))} is a model of your own, and data.channels=0 leaves "
            "its channels open: set data.channels=1 for grey images or data.channels=3 for colour."
        )
    return image_size, image_size, channels or (3 if name in _COLOUR else 1)


def validate(config: ml_collections.ConfigDict, *, discriminated: bool) -> None:
    """Checks all of a config that concerns its model, before any image is read.

    Args:
      config: the run's.
      discriminated: whether a discriminator sees its codes (`objectives.Objective`).

    Raises:
      UserError: in one sentence, with the key, its value and what it may be.
    """
    require(config, "model.latents", lambda v: v > 0, "greater than 0")
    name, options = config.model.name, config.model
    if name in MODELS and (unknown := [key for key in options if key not in _OWN_KEYS]):
        raise UserError(
            f"--config.model.{unknown[0]}={shown(repr(options[unknown[0]]))} is for a model of "
            f"your own, and model.name={name} has no such option: leave it out."
        )
    if options.pretrained and name != "mvtec_ad":
        raise UserError(
            f"--config.model.pretrained={shown(repr(options.pretrained))} must be empty unless "
            "model.name=mvtec_ad, whose trunk is the ResNet18."
        )
    if options.freeze_trunk and not options.pretrained:
        raise UserError(
            f"--config.model.freeze_trunk={options.freeze_trunk} must be False unless "
            "model.pretrained gives the weights to keep."
        )
    model = from_config(config)
    named = [("attention.layer", config.attention.layer)]
    for key in ("attention", "evaluate"):
        layers = config[key].layers
        layers = (layers,) if isinstance(layers, str) else layers
        named += [(f"{key}.layers", layer) for layer in layers]
    if discriminated:
        named.append(("factor.ad_layer", config.factor.ad_layer))
    contract.require_layers(model, name, named)
    if name not in MODELS or discriminated:
        contract.check(model, name, named, batch_stats=not discriminated)


def _function(name: str) -> Callable[..., Any]:
    if name in MODELS:
        return MODELS[name]
    module_name, _, function_name = name.partition(":")
    if not (module_name and function_name):
        raise _unknown(name)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # it is anyone's code
        raise UserError(
            f"model.name={shown(repr(name))}: the module {shown(module_name)} cannot be imported "
            f"({contract.reason(error)}{_place(error)}); its folder must be the current one, on "
            "PYTHONPATH or installed."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise UserError(
            f"model.name={shown(repr(name))}: the module {module_name} has no function "
            f"{shown(repr(function_name))}; write model.name=package.module:function."
        )
    return function


def _unknown(name: str) -> UserError:
    return UserError(
        f"model.name={shown(repr(name))} is unknown; choose one of {', '.join(MODELS)}, or "
        "package.module:function for a model of your own."
    )


def _require_methods(module: Any, name: str) -> None:
    kind, whose = type(module).__name__, f"model.name={shown(repr(name))}"
    if not isinstance(module, nn.Module):
        raise UserError(
            f"{whose}: the function returned an object of type {kind}, and must return a Flax "
            "module (flax.linen.Module)."
        )
    for method in ("features", "head", "decode"):
        if not callable(getattr(module, method, None)):
            raise UserError(
                f"{whose}: the function returned a {kind} without {method}; a model needs "
                "features(images, layer, *, train), head(features, layer, *, train) and "
                "decode(z, *, train)."
            )


def _place(error: Exception) -> str:
    """Where in the user's code an error arose, for a message."""
    if isinstance(error, SyntaxError):  # its text says so
        return ""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename != __file__ and not frame.filename.startswith("<")
        and "importlib" not in frame.filename
    ]  # fmt: skip
    return f", {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
