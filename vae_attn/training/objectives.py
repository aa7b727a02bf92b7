"""What a config trains: one row per objective, each a function that makes a `Task`."""

import functools
import types
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import ml_collections
import optax

from vae_attn.config import require
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.models import build
from vae_attn.models.model import Model
from vae_attn.training import factor, state, steps, trunk
from vae_attn.training.task import Task

DTYPES = ("float32", "bfloat16")


def build_model(config: ml_collections.ConfigDict) -> Model:
    """The model of a config; its batch normalisation is synchronised in training."""
    return build.from_config(config, axis_name=steps.AXIS)


def make_task(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """The task of `train.objective`.

    Args:
      config: see `vae_attn.config.default_config`.
      pixels_of: from images as they are stored to [0, 1].
    """
    return OBJECTIVES[config.train.objective](config, pixels_of)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what the objective reads of a config.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    known = f"one of {', '.join(OBJECTIVES)}"
    require(config, "train.objective", lambda v: v in OBJECTIVES, known)
    discriminates = config.train.objective == "factor_vae"
    dtypes = ("float32",) if discriminates else DTYPES
    known = f"one of {', '.join(dtypes)} (with a discriminator float32)"
    require(config, "train.dtype", lambda v: v in dtypes, known)
    if discriminates:
        factor.validate(config)
        return
    for key in ("factor.gamma", "factor.ad_weight"):  # else they would silently do nothing
        require(config, key, lambda v: v == 0, "0 unless train.objective=factor_vae")


def _vae(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """Reconstruction + beta KL: Kingma & Welling (2014); beta-VAE: Higgins et al. (2017)."""
    return _elbo_task(config, pixels_of, steps.beta_elbo(config.train.beta))


def _elbo_task(
    config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf, combine: steps.Combine
) -> Task:
    """The task of a VAE without further networks, from how its two terms are combined."""
    model = build_model(config)
    tx = _optimizer(config, model)
    return Task(
        create=functools.partial(state.create, model=model, tx=tx),
        update=steps.make_update_fn(
            model=model,
            tx=tx,
            augment=augmentation(config),
            combine=combine,
            pixels_of=pixels_of,
            dtype=jnp.dtype(config.train.dtype),
        ),
        loss=steps.make_loss_fn(model=model, combine=combine, pixels_of=pixels_of),
        batch_indices=sampling.batch_indices,
    )


def _factor_vae(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """FactorVAE (Kim & Mnih 2018) and, with `factor.ad_weight`, AD-FactorVAE (Liu et al. 2020)."""
    model = build_model(config)
    combine = steps.beta_elbo(config.train.beta)
    loss = steps.make_loss_fn(model=model, combine=combine, pixels_of=pixels_of)
    tx = _optimizer(config, model)
    return factor.make_task(config, model=model, tx=tx, loss=loss, pixels_of=pixels_of)


OBJECTIVES: Mapping[str, Callable[[ml_collections.ConfigDict, steps.PixelsOf], Task]] = (
    types.MappingProxyType({"vae": _vae, "factor_vae": _factor_vae})
)


def _optimizer(config: ml_collections.ConfigDict, model: Model) -> optax.GradientTransformation:
    tx = optax.adam(config.train.learning_rate)
    return trunk.freeze(tx, model.layers) if config.model.freeze_trunk else tx


def augmentation(config: ml_collections.ConfigDict) -> Augmentation:
    """What a config allows to be done to a training image."""
    return Augmentation(
        rotation=config.data.rotation,
        shift=config.data.shift,
        mirror_horizontal=config.data.mirror_horizontal,
        mirror_vertical=config.data.mirror_vertical,
    )
