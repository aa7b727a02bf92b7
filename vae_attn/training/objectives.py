"""What a config trains: one row per objective.

`configs/dsprites.py` names those that the literature compares, with the values of their keys.
"""

import dataclasses
import functools
import types
from collections.abc import Callable, Mapping

import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array

from vae_attn.config import require
from vae_attn.data import sampling
from vae_attn.data.augment import Augmentation
from vae_attn.models import build
from vae_attn.models.model import Model
from vae_attn.training import factor, state, steps, trunk
from vae_attn.training.task import Task

DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class Objective:
    """A row.

    Attributes:
      make: from a config, and from images as they are stored to [0, 1], to the task.
      title: from a config to what a page calls the model.
      validate: raises UserError for keys of the config that the objective cannot take.
      discriminates: whether a discriminator sees each image's codes, so that the model may have no
        batch statistics, and computes in float32; the keys of `factor` are for such objectives.
    """

    make: Callable[[ml_collections.ConfigDict, steps.PixelsOf], Task]
    title: Callable[[ml_collections.ConfigDict], str]
    validate: Callable[[ml_collections.ConfigDict], None] = lambda _: None
    discriminates: bool = False


def build_model(config: ml_collections.ConfigDict) -> Model:
    """The model of a config; its batch normalisation is synchronised in training."""
    return build.from_config(config, axis_name=steps.AXIS)


def make_task(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """The task of `train.objective`.

    Args:
      config: see `vae_attn.config.default_config`.
      pixels_of: from images as they are stored to [0, 1].
    """
    return of(config).make(config, pixels_of)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what the objective reads of a config.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    known = f"one of {', '.join(OBJECTIVES)}"
    require(config, "train.objective", lambda v: v in OBJECTIVES, known)
    objective = of(config)
    dtypes = ("float32",) if objective.discriminates else DTYPES
    known = f"one of {', '.join(dtypes)} (with a discriminator float32)"
    require(config, "train.dtype", lambda v: v in dtypes, known)
    objective.validate(config)
    for key in () if objective.discriminates else ("factor.gamma", "factor.ad_weight"):
        # Else they would silently do nothing.
        names = " or ".join(name for name, row in OBJECTIVES.items() if row.discriminates)
        require(config, key, lambda v: v == 0, f"0 unless train.objective={names}")


def of(config: ml_collections.ConfigDict) -> Objective:
    """The row of `train.objective`."""
    return OBJECTIVES[config.train.objective]


def _vae_title(config: ml_collections.ConfigDict) -> str:
    beta = config.train.beta
    return "A VAE" if beta == 1 else f"A beta-VAE (beta {beta:g})"


def _require_pairs(config: ml_collections.ConfigDict) -> None:
    at_least = "at least 2, as latents of one image alone have no total correlation"
    require(config, "train.batch_size", lambda v: v >= 2, at_least)


def _vae(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """Reconstruction + beta KL: Kingma & Welling (2014); beta-VAE: Higgins et al. (2017)."""
    return _elbo_task(config, pixels_of, steps.beta_elbo(config.train.beta))


def _beta_tc_vae(config: ml_collections.ConfigDict, pixels_of: steps.PixelsOf) -> Task:
    """Reconstruction + KL + (beta - 1) TC: beta-TCVAE (Chen et al. 2018, equation 4, alpha = 1).

    TC is estimated from the batch, without a discriminator. Its gradient is that of Chen et al.'s
    minibatch weighted sampling; the KL is the exact one of each image, as in Locatello et al.
    (2019). The validation loss has no TC, as FactorVAE's has none.
    """
    beta = config.train.beta

    def combine(terms: dict[str, Array]) -> Array:
        penalty = (beta - 1) * terms.get("total_correlation", 0.0)
        return terms["reconstruction"] + terms["kl"] + penalty

    return _elbo_task(config, pixels_of, combine, steps.kl_parts)


def _elbo_task(
    config: ml_collections.ConfigDict,
    pixels_of: steps.PixelsOf,
    combine: steps.Combine,
    further: steps.Further | None = None,
) -> Task:
    """The task of a VAE without further networks, from how its terms are combined.

    Args:
      config: see `vae_attn.config.default_config`.
      pixels_of: from images as they are stored to [0, 1].
      combine: see `steps.make_update_fn`.
      further: likewise.
    """
    model = build_model(config)
    tx = _optimizer(config, model)
    return Task(
        create=functools.partial(state.create, model=model, tx=tx),
        update=steps.make_update_fn(
            model=model,
            tx=tx,
            augment=augmentation(config),
            combine=combine,
            further=further,
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


OBJECTIVES: Mapping[str, Objective] = types.MappingProxyType(
    {
        "vae": Objective(_vae, _vae_title),
        "beta_tc_vae": Objective(
            _beta_tc_vae,
            lambda config: f"A beta-TCVAE (beta {config.train.beta:g})",
            _require_pairs,
        ),
        "factor_vae": Objective(_factor_vae, factor.title, factor.validate, discriminates=True),
    }
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
