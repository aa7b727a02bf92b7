"""One update of the VAE on one device's share of a batch."""

from collections.abc import Callable
from typing import Any as PyTree
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, Key, UInt8

from vae_attn import losses
from vae_attn.data.augment import Augmentation
from vae_attn.data.dataset import to_unit
from vae_attn.models.model import Model
from vae_attn.training.state import TrainState

AXIS = "batch"

Metrics = dict[str, Float[Array, ""]]
Images = UInt8[Array, "n ..."]  # as they are stored: pixels, or packed bits
PixelsOf = Callable[[UInt8[Array, "batch ..."]], Float[Array, "batch height width channels"]]
# From the terms of the ELBO, as means or per image, to the loss that is minimised.
Combine = Callable[[dict[str, Array]], Array]
# From z, mean and logvar of this device's share of a batch to further terms per image.
Further = Callable[[Array, Array, Array], dict[str, Array]]
UpdateFn = Callable[[TrainState, Images, Int[Array, "local"]], tuple[TrainState, Metrics]]


def example_keys(
    seed: Int[Array, ""], step: Int[Array, ""], local_batch_size: int
) -> Key[Array, "local"]:
    """Random keys for this device's examples: functions of seed, step and place in the batch.

    They do not depend on how many devices share the batch, so neither does the training.
    """
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    places = lax.axis_index(AXIS) * local_batch_size + jnp.arange(local_batch_size)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(step_key, places)


def mean_over_devices(tree: PyTree) -> PyTree:
    """The mean over the devices that share `AXIS`; of one alone nothing is copied."""
    return tree if lax.axis_size(AXIS) == 1 else lax.pmean(tree, AXIS)


def as_dtype(tree: PyTree, dtype: DTypeLike) -> PyTree:
    """A tree of floating-point arrays in another precision."""
    return jax.tree.map(lambda x: x.astype(dtype), tree)


def beta_elbo(beta: float) -> Combine:
    """Reconstruction + beta KL (1: Kingma & Welling 2014; more: beta-VAE, Higgins et al. 2017)."""
    return lambda terms: terms["reconstruction"] + beta * terms["kl"]


def kl_parts(
    z: Float[Array, "local latents"],
    mean: Float[Array, "local latents"],
    logvar: Float[Array, "local latents"],
) -> dict[str, Float[Array, "local"]]:
    """The parts of the KL divergence, by the batch of all devices; see `losses.kl_decomposition`.

    Args:
      z: this device's share of the codes.
      mean: of q(z|x) of its images.
      logvar: likewise.
    """
    all_mean, all_logvar = lax.all_gather((mean, logvar), AXIS, tiled=True)
    return losses.kl_decomposition(
        z=z, mean=mean, logvar=logvar, all_mean=all_mean, all_logvar=all_logvar
    )


def make_update_fn(
    *,
    model: Model,
    tx: optax.GradientTransformation,
    augment: Augmentation,
    combine: Combine,
    further: Further | None = None,
    pixels_of: PixelsOf = to_unit,
    dtype: DTypeLike = jnp.float32,
) -> UpdateFn:
    """The update of a VAE.

    Args:
      model: whose batch normalisation averages over `AXIS`.
      tx: optimiser.
      augment: what may be done to a training image.
      combine: from the terms' means over the batch to the loss, such as `beta_elbo(1.0)`.
      further: terms beside those of the ELBO, such as `kl_parts`; None for none.
      pixels_of: from images as they are stored to [0, 1].
      dtype: in which the model computes; its parameters, and the loss, stay in float32.

    Returns:
      `update(state, images, indices)`, for one device among those that share the axis `AXIS`:
      `images` is the whole training set, `indices` this device's share of the batch. It returns
      the next state and the mean losses, equal on all devices.
    """

    def loss_fn(params: PyTree, state: TrainState, batch: Array, noise: Array) -> tuple:
        outputs, updated = model.apply(
            {"params": as_dtype(params, dtype), "batch_stats": state.batch_stats},
            as_dtype(batch, dtype),
            as_dtype(noise, dtype),
            train=True,
            mutable=["batch_stats"],
        )
        logits, mean, logvar = as_dtype(outputs, jnp.float32)
        terms = losses.elbo_terms(logits=logits, images=batch, mean=mean, logvar=logvar)
        if further is not None:
            z = losses.reparameterize(mean=mean, logvar=logvar, noise=noise)
            terms |= further(z, mean, logvar)
        means = {name: term.mean() for name, term in terms.items()}
        loss = combine(means)
        return loss, ({"loss": loss, **means}, updated.get("batch_stats", {}))

    def update(
        state: TrainState, images: Images, indices: Int[Array, "local"]
    ) -> tuple[TrainState, Metrics]:
        noise_keys, augment_keys = jax.vmap(jax.random.split, out_axes=1)(
            example_keys(state.seed, state.step, len(indices))
        )
        batch = jax.vmap(augment)(augment_keys, pixels_of(images[indices]))
        noise = jax.vmap(lambda key: jax.random.normal(key, (model.latents,), jnp.float32))(
            noise_keys
        )
        gradients, (metrics, batch_stats) = jax.grad(loss_fn, has_aux=True)(
            state.params, state, batch, noise
        )
        gradients, metrics = mean_over_devices((gradients, metrics))
        updates, opt_state = tx.update(gradients, state.opt_state, state.params)
        state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
        )
        return state, metrics

    return update


def repeated(update: Callable[..., tuple[PyTree, Metrics]]) -> Callable[..., tuple]:
    """Several updates in one program, so that the host need not start each of them.

    Args:
      update: `update(state, images, indices)`, of one step.

    Returns:
      The same for `indices` with an axis of steps after that of the batch; each of the metrics
      has a leading axis of steps.
    """

    def updates(
        state: PyTree, images: Images, indices: Int[Array, "local steps ..."]
    ) -> tuple[PyTree, dict[str, Float[Array, "steps ..."]]]:
        def step(state: PyTree, indices: Array) -> tuple:
            return update(state, images, indices)

        return lax.scan(step, state, jnp.moveaxis(indices, 1, 0))

    return updates


class AtMean(NamedTuple):
    """Of a batch of images, at z = mean.

    Attributes:
      mean: of q(z | x).
      logvar: its log variance.
      reconstruction: Bernoulli loss, in nats per image.
      kl: in nats per image.
    """

    mean: Float[Array, "batch latents"]
    logvar: Float[Array, "batch latents"]
    reconstruction: Float[Array, "batch"]
    kl: Float[Array, "batch"]


def at_mean(model: Model, variables: PyTree, images: Float[Array, "batch h w c"]) -> AtMean:
    """What a trained model makes of images in [0, 1] without noise, at z = mean."""
    mean, logvar = model.apply(variables, images, method="encode")
    logits = model.apply(variables, mean, method="decode")
    terms = losses.elbo_terms(logits=logits, images=images, mean=mean, logvar=logvar)
    return AtMean(mean, logvar, **terms)


def make_loss_fn(
    *, model: Model, combine: Combine, pixels_of: PixelsOf = to_unit
) -> Callable[..., Float[Array, "batch"]]:
    """`loss(variables, images)`: the objective per image at z = mean, for the validation loss."""

    @jax.jit
    def loss(variables: PyTree, images: UInt8[Array, "batch ..."]) -> Float[Array, "batch"]:
        found = at_mean(model, variables, pixels_of(images))
        return combine({"reconstruction": found.reconstruction, "kl": found.kl})

    return loss
