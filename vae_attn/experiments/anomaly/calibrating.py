"""Measures on normal images what an explainer has to know of them."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree, UInt8

from vae_attn import attention
from vae_attn.experiments.anomaly.calibration import (
    Calibration,
    Variant,
    measure,
    normal_image_threshold,
    normal_threshold,
)
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.models.model import Model
from vae_attn.training.checkpoints import digest


def calibrate(
    model: Model,
    variables: PyTree,
    normal_images: UInt8[np.ndarray, "n_normal height width channels"],
    validation: UInt8[np.ndarray, "n_validation height width channels"],
    *,
    variant: Variant,
    projection_steps: int = 0,
    batch_size: int = 64,
    latent_batch_size: int | None = None,
) -> Explainer:
    """An explainer whose calibration is measured on normal images.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics.
      normal_images: what it was trained on (equation 4's x).
      validation: held-out normal images, by which maps are calibrated.
      variant: of the maps of images.
      projection_steps: of `counterparts.project`; 0 takes the reconstruction.
      batch_size: images at once.
      latent_batch_size: latents differentiated at once; None is all.
    """
    unknown = np.zeros(model.latents, np.float32)
    calibration = Calibration(
        digest(variables), variant, projection_steps, unknown, unknown, {}, math.nan, math.nan
    )
    explainer = Explainer(
        model, variables, calibration, batch_size=batch_size, latent_batch_size=latent_batch_size
    )
    mean, variance = attention.normal_statistics(*map(jnp.asarray, explainer.encode(normal_images)))
    # Before anything is compiled that has the calibration in it.
    explainer.calibration = calibration = dataclasses.replace(
        calibration, normal_mean=np.asarray(mean), normal_variance=np.asarray(variance)
    )
    raw = explainer.maps(validation, styles=(variant.style,), layers=variant.layers)
    explainer.calibration = dataclasses.replace(
        calibration,
        statistics=measure(raw),
        threshold=normal_threshold(variant, raw),
        image_threshold=normal_image_threshold(variant, raw),
    )
    return explainer
