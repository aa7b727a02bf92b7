"""How alike the maps of different latents are: a measure of a model that needs no labels."""

import functools
import itertools
from collections.abc import Callable
from typing import Any as PyTree

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from vae_attn import backend
from vae_attn.data.factor_grid import FactorData
from vae_attn.models.model import Model
from vae_attn.training.attention_loss import FORMS, Seen

PREFIX = "likeness/"


@functools.partial(backend.jit, static_argnames=("model", "pixels", "form", "layer"))
def _likeness(
    model: Model,
    pixels: Callable,
    form: str,
    layer: str,
    variables: PyTree,
    stored: Array,
    pairs: Array,
) -> Float[Array, "pairs"]:
    """Mean likeness of the maps of pairs of latents; the second half of the images are x'."""
    images, others = jnp.split(pixels(stored), 2)
    features = model.apply(variables, images, layer, method="features")
    seen = Seen(model, variables, layer, images, features, others)
    maps = FORMS[form].maps(seen, jnp.arange(model.latents))

    def of_pair(pair: Int[Array, "2"]) -> Float[Array, ""]:
        return FORMS[form].likeness(first=maps[:, pair[0]], second=maps[:, pair[1]]).mean()

    return jax.lax.map(of_pair, pairs)


def likeness(
    model: Model,
    variables: PyTree,
    data: FactorData,
    *,
    active: Bool[np.ndarray, "latents"],
    layer: str,
    num_images: int,
    seed: int,
) -> dict[str, float]:
    """Mean over images and pairs of active latents of each form of L_AD.

    Args:
      model: the VAE.
      variables: of the trained VAE.
      data: of which images are drawn, as many again for the exact maps to compare them with.
      active: latents that have not collapsed.
      layer: of the published maps.
      num_images: over which it is a mean.
      seed: of the draw.

    Returns:
      `likeness/<form>`; nothing where fewer than two latents are active.
    """
    if active.sum() < 2:
        return {}
    pairs = np.array([*itertools.combinations(range(model.latents), 2)], np.int32)
    wanted = active[pairs].all(axis=1)
    stored = data.sample(2 * num_images, seed=seed)
    found = {}
    for form in FORMS:
        # Of all pairs, so that another model's active latents compile nothing anew.
        each = _likeness(model, data.pixels, form, layer, variables, stored, pairs)
        found[PREFIX + form] = float(np.asarray(each)[wanted].mean())
    return found
