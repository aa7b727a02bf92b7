"""Trains the head of the learned contrast on anomalies drawn anew in every step."""

import math
from typing import Any as PyTree
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Key, UInt8

from vae_attn import backend
from vae_attn.batching import map_batches
from vae_attn.config import require, require_each
from vae_attn.data import drawn_anomalies
from vae_attn.data.augment import Augmentation
from vae_attn.data.dataset import to_unit
from vae_attn.experiments import learned
from vae_attn.experiments.learned import Head
from vae_attn.experiments.map_functions import project
from vae_attn.models.model import Model
from vae_attn.progress import Progress

_SCALE_IMAGES = 256  # normal ones, whose inputs are the scale
_ADAM = optax.scale_by_adam()


class Settings(NamedTuple):
    """What a head depends on beside its model and images; `learned.*` of a config.

    Attributes:
      steps: of its training.
      batch_size: of each.
      learning_rate: of Adam, at the start; it falls to 0 along a cosine.
      layers: whose features it takes, beside the pixels.
      projection_steps: of the counterparts.
      seed: of all that is drawn.
    """

    steps: int
    batch_size: int
    learning_rate: float
    layers: tuple[str, ...]
    projection_steps: int
    seed: int


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks `config.learned`.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    require(config, "learned.steps", lambda v: v >= 0, "0 or more; 0 trains no head")
    keys = ("learned.batch_size", "learned.learning_rate")
    require_each(config, keys, lambda v: v > 0 and math.isfinite(v), "greater than 0")


def train(
    model: Model,
    variables: PyTree,
    images: UInt8[np.ndarray, "n height width channels"],
    settings: Settings,
    augment: Augmentation,
) -> Head:
    """Trains a head; a function of its arguments alone, so that it is not saved on the way.

    Args:
      model: the VAE.
      variables: its parameters and batch statistics, which stay as they are.
      images: normal ones, that the VAE learned from.
      settings: see there.
      augment: what may be done to a normal image.
    """
    scales = _scales(model, variables, images, settings)
    key = jax.random.fold_in(jax.random.key(settings.seed), settings.steps)
    params = _init_jit(key, {layer: of[None] for layer, of in scales.items()})
    state = params, _ADAM.init(params)
    rate = optax.cosine_decay_schedule(settings.learning_rate, settings.steps)
    what = "training the head of the learned contrast"
    with Progress(what, total=settings.steps, unit="steps") as progress:
        for step in range(settings.steps):
            rng = np.random.default_rng((settings.seed, step))
            chosen = rng.integers(len(images), size=(2, settings.batch_size))
            batch, others = (np.stack([images[n] for n in row]) for row in chosen)
            key = jax.random.fold_in(jax.random.key(settings.seed), step)
            state = _update_jit(
                model, variables, scales, state, batch, others, key, rate(step),
                projection_steps=settings.projection_steps, augment=augment,
            )  # fmt: skip
            progress.add(1)
    return Head(jax.device_get(state[0]), scales)


def _scales(
    model: Model, variables: PyTree, images: np.ndarray, settings: Settings
) -> dict[str, np.ndarray]:
    """By layer, what inputs are on average over normal images."""
    thinned = images[:: -(-len(images) // _SCALE_IMAGES)]
    totals: dict[str, np.ndarray] = {}

    def inputs(batch: np.ndarray) -> dict[str, Array]:
        options = {"layers": settings.layers, "projection_steps": settings.projection_steps}
        return _inputs_jit(model, variables, batch, **options)

    for start in range(0, len(thinned), settings.batch_size):
        batch = thinned[start : start + settings.batch_size]
        found = map_batches(inputs, batch, settings.batch_size)
        for layer, of in found.items():
            totals[layer] = totals.get(layer, 0) + of.sum(axis=0, dtype=np.float64)
    return {layer: learned.scale_of(total / len(thinned)) for layer, total in totals.items()}


def _inputs(
    model: Model,
    variables: PyTree,
    images: Array,
    *,
    layers: tuple[str, ...],
    projection_steps: int,
) -> dict[str, Array]:
    x = to_unit(images)
    counterparts = project(model, variables, x, projection_steps)
    return dict(learned.raw_inputs(model, variables, x, counterparts, layers))


def drawn(
    key: Key[Array, ""],
    images: UInt8[Array | np.ndarray, "n height width channels"],
    others: UInt8[Array | np.ndarray, "n height width channels"],
    augment: Augmentation,
) -> tuple[Float[Array, "n height width channels"], Bool[Array, "n height width"]]:
    """Normal images, augmented, with an anomaly on each; and which pixels are anomalous."""

    def one(key: Array, image: Array, other: Array) -> tuple[Array, Array]:
        augment_key, draw_key = jax.random.split(key)
        return drawn_anomalies.draw(draw_key, augment(augment_key, image), other)

    return jax.vmap(one)(jax.random.split(key, len(images)), to_unit(images), to_unit(others))


def _update(
    model: Model,
    variables: PyTree,
    scales: dict[str, Array],
    state: tuple[PyTree, PyTree],
    images: Array,
    others: Array,
    key: Key[Array, ""],
    rate: Float[Array, ""],
    *,
    projection_steps: int,
    augment: Augmentation,
) -> tuple[PyTree, PyTree]:
    """One step of Adam with a learning rate."""
    x, masks = drawn(key, images, others, augment)
    counterparts = project(model, variables, x, projection_steps)
    layers = tuple(layer for layer in scales if layer != learned.IMAGE)
    inputs = learned.raw_inputs(model, variables, x, counterparts, layers)
    params, opt_state = state

    def loss(params: PyTree) -> Float[Array, ""]:
        found = learned.logits(params, scales, inputs)
        truth = jax.image.resize(masks.astype(jnp.float32), found.shape, "bilinear")
        # Focal loss (Lin et al. 2017), as anomalous pixels are few.
        return optax.sigmoid_focal_loss(found, (truth >= 0.5).astype(jnp.float32)).mean()

    updates, opt_state = _ADAM.update(jax.grad(loss)(params), opt_state)
    return jax.tree.map(lambda x, update: x - rate * update, params, updates), opt_state


def _init(key: Key[Array, ""], inputs: dict[str, Array]) -> PyTree:
    return learned.Network().init(key, inputs)["params"]


_init_jit = backend.jit(_init)
_inputs_jit = backend.jit(_inputs, static_argnames=("model", "layers", "projection_steps"))
_update_jit = backend.jit(_update, static_argnames=("model", "projection_steps", "augment"))
