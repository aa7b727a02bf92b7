"""One update of FactorVAE and AD-FactorVAE: the VAE, then its discriminator, on two batches."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any as PyTree

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Float, Int, Key

from vae_attn import attention, losses
from vae_attn.config import require, require_each
from vae_attn.data import sampling
from vae_attn.models.discriminator import Discriminator
from vae_attn.models.model import Model
from vae_attn.training import state as state_lib
from vae_attn.training.steps import AXIS, Images, Metrics, PixelsOf, example_keys, mean_over_devices
from vae_attn.training.task import Task

# A place in the batch that no example has: what all examples of a step share is keyed by it.
_SHARED_PLACE = 2**32 - 1


@flax.struct.dataclass
class FactorState:
    """A VAE and its discriminator.

    Attributes:
      vae: the VAE's state; its seed and step are the run's.
      discriminator: parameters of the discriminator.
      discriminator_opt_state: of its optimiser.
    """

    vae: PyTree
    discriminator: PyTree
    discriminator_opt_state: PyTree

    @property
    def variables(self) -> dict[str, PyTree]:
        """What the VAE's `apply` takes."""
        return self.vae.variables

    @property
    def step(self) -> PyTree:
        """Number of updates made, a scalar."""
        return self.vae.step


@dataclasses.dataclass(frozen=True)
class FactorObjective:
    """Weights of the terms: reconstruction + beta KL + gamma TC + ad_weight L_AD.

    Attributes:
      beta: of the KL term.
      gamma: of the total correlation TC (Kim & Mnih 2018).
      ad_weight: lambda of the attention disentanglement loss; 0 leaves it out (FactorVAE).
      ad_layer: of the encoder, whose features its maps weigh.
      ad_pairs: pairs of latents compared at once, all distinct: at most half the latents.
    """

    beta: float = 1.0
    gamma: float = 40.0
    ad_weight: float = 0.0
    ad_layer: str = "conv3"
    ad_pairs: int = 1


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks `config.factor`, but for the layer, which `models.build` knows.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    weights = ("factor.gamma", "factor.ad_weight")
    require_each(config, weights, lambda v: 0 <= v < math.inf, "0 or more, and finite")
    rate = "greater than 0, and finite"
    require(config, "factor.learning_rate", lambda v: 0 < v < math.inf, rate)
    if config.factor.ad_weight:
        most = config.model.latents // 2
        within = f"from 1 to {most}, as no latent of model.latents={config.model.latents} is in two"
        require(config, "factor.ad_pairs", lambda v: 1 <= v <= most, within)


FactorUpdateFn = Callable[[FactorState, Images, Int[Array, "local 2"]], tuple[FactorState, Metrics]]


def make_task(
    config: ml_collections.ConfigDict,
    *,
    model: Model,
    tx: optax.GradientTransformation,
    loss: Callable[..., Float[Array, "batch"]],
    pixels_of: PixelsOf,
) -> Task:
    """FactorVAE, or AD-FactorVAE, as `config.factor` has it.

    Args:
      config: see `vae_attn.config.default_config`.
      model: the VAE.
      tx: its optimiser.
      loss: its validation loss.
      pixels_of: from images as they are stored to [0, 1].
    """
    options = config.factor
    networks = {
        "model": model,
        "discriminator": Discriminator(),
        "tx": tx,
        "discriminator_tx": optax.adam(options.learning_rate, b1=0.5, b2=0.9),
    }
    objective = FactorObjective(
        beta=config.train.beta,
        gamma=options.gamma,
        ad_weight=options.ad_weight,
        ad_layer=options.ad_layer,
        ad_pairs=options.ad_pairs,
    )
    return Task(
        create=functools.partial(create, **networks),
        update=make_factor_update_fn(**networks, objective=objective, pixels_of=pixels_of),
        loss=loss,
        batch_indices=two_batches,
    )


def two_batches(**options: int) -> Int[np.ndarray, "batch 2"]:
    """Two independent batches side by side; arguments as in `sampling.batch_indices`."""
    return np.stack([sampling.batch_indices(**options, stream=n) for n in (0, 1)], axis=1)


def create(
    *,
    model: Model,
    discriminator: Discriminator,
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    seed: int | Int[Array, ""],
) -> FactorState:
    """The state before the first step; a function of the seed alone."""

    @jax.jit
    def initialize(seed: Int[Array, ""]) -> tuple[PyTree, PyTree]:
        key = jax.random.fold_in(jax.random.key(seed), _SHARED_PLACE)
        params = discriminator.init(key, jnp.zeros((1, model.latents), jnp.float32))["params"]
        return params, discriminator_tx.init(params)

    vae = state_lib.create(model=model, tx=tx, seed=seed)
    return FactorState(vae, *initialize(jnp.int32(seed)))


def draw_pairs(key: Key[Array, ""], *, latents: int, pairs: int) -> Int[Array, "pairs 2"]:
    """Pairs of latents drawn uniformly, no latent twice."""
    return jax.random.permutation(key, latents)[: 2 * pairs].reshape(pairs, 2)


def permute_latents(
    key: Key[Array, ""], z: Float[Array, "local latents"]
) -> Float[Array, "local latents"]:
    """This device's share of the codes with each latent permuted over the batch by itself.

    Kim & Mnih (2018), algorithm 1: samples of the product of the marginals. The permutations
    run over the batch of all devices that share the axis `AXIS`.

    Args:
      key: the same on all devices.
      z: this device's share of the codes.
    """
    whole = lax.all_gather(z, AXIS, tiled=True)
    permuted = jax.random.permutation(key, whole, axis=0, independent=True)
    return lax.dynamic_slice_in_dim(permuted, lax.axis_index(AXIS) * len(z), len(z))


def make_attention_loss_fn(*, model: Model, layer: str) -> Callable[..., Float[Array, "batch"]]:
    """`loss(variables, features, pairs)`: L_AD per image, the mean over the pairs.

    Differentiable through alpha, so that its gradient reaches the weights above the layer
    (through alpha) as well as those below (through the features).
    """

    def loss(
        variables: PyTree, features: Float[Array, "batch h w k"], pairs: Int[Array, "pairs 2"]
    ) -> Float[Array, "batch"]:
        # No `DenseMean`: it pays for many latents, and here are few.
        maps = attention.paper_maps(
            lambda a: model.apply(variables, a, layer, method="head")[0],
            features,
            chosen=pairs.ravel(),
        )
        # Pair after pair, so that the sum over a pair's pixels stays within it.
        per_pair = [
            losses.attention_disentanglement(first=maps[:, 2 * n], second=maps[:, 2 * n + 1])
            for n in range(len(pairs))
        ]
        return jnp.mean(jnp.stack(per_pair), axis=0)

    return loss


def make_factor_update_fn(
    *,
    model: Model,
    discriminator: Discriminator,
    tx: optax.GradientTransformation,
    discriminator_tx: optax.GradientTransformation,
    objective: FactorObjective,
    pixels_of: PixelsOf,
) -> FactorUpdateFn:
    """The update of FactorVAE (Kim & Mnih 2018, algorithm 2), or of AD-FactorVAE.

    The VAE learns from the first batch. Then the discriminator learns to tell the codes of the
    first batch from the permuted codes of the second, which the updated encoder gives. Neither's
    gradient reaches the other.

    Args:
      model: the VAE, without batch normalisation.
      discriminator: see there.
      tx: the VAE's optimiser.
      discriminator_tx: the discriminator's.
      objective: weights of the loss's terms.
      pixels_of: from images as they are stored to [0, 1].

    Returns:
      `update(state, images, indices)`, for one device among those that share the axis `AXIS`:
      `images` is the whole training set; the columns of `indices` are this device's shares of
      two independent batches. It returns the next state and the mean losses.
    """
    vae_loss = _make_vae_loss_fn(model, discriminator, objective)
    discriminator_loss = _make_discriminator_loss_fn(discriminator)

    def update(
        state: FactorState, images: Images, indices: Int[Array, "local 2"]
    ) -> tuple[FactorState, Metrics]:
        vae, psi = state.vae, state.discriminator
        noise = _noise(vae.seed, vae.step, len(indices), model.latents)
        pairs_key, permutation_key = _shared_keys(vae.seed, vae.step)
        pairs = draw_pairs(pairs_key, latents=model.latents, pairs=objective.ad_pairs)
        x, other_x = pixels_of(images[indices[:, 0]]), pixels_of(images[indices[:, 1]])

        gradients, (metrics, z) = jax.grad(vae_loss, has_aux=True)(
            vae.params, psi, x, noise[0], pairs
        )
        params, opt_state = _descend(tx, gradients, vae.opt_state, vae.params)

        mean, logvar = model.apply({"params": params}, other_x, method="encode")
        permuted = permute_latents(permutation_key, mean + jnp.exp(logvar / 2) * noise[1])
        value, gradients = jax.value_and_grad(discriminator_loss)(psi, z, permuted)
        psi_opt = state.discriminator_opt_state
        psi, psi_opt = _descend(discriminator_tx, gradients, psi_opt, psi)
        state = FactorState(
            vae=vae.replace(step=vae.step + 1, params=params, opt_state=opt_state),
            discriminator=psi,
            discriminator_opt_state=psi_opt,
        )
        return state, mean_over_devices(metrics | {"discriminator_loss": value})

    return update


def _make_vae_loss_fn(
    model: Model, discriminator: Discriminator, objective: FactorObjective
) -> Callable[..., tuple]:
    """The VAE's loss of a batch, with its terms and codes; the discriminator's parameters stay."""
    attention_loss = make_attention_loss_fn(model=model, layer=objective.ad_layer)

    def vae_loss(params: PyTree, psi: PyTree, x: Array, noise: Array, pairs: Array) -> tuple:
        variables = {"params": params}
        features = model.apply(variables, x, objective.ad_layer, method="features")
        mean, logvar = model.apply(variables, features, objective.ad_layer, method="head")
        z = mean + jnp.exp(logvar / 2) * noise
        logits = model.apply(variables, z, method="decode")
        terms = losses.elbo_terms(logits=logits, images=x, mean=mean, logvar=logvar)
        terms["total_correlation"] = losses.total_correlation(
            logits=discriminator.apply({"params": psi}, z)
        )
        weights = {"kl": objective.beta, "total_correlation": objective.gamma}
        if objective.ad_weight:
            terms["attention_disentanglement"] = attention_loss(variables, features, pairs)
            weights["attention_disentanglement"] = objective.ad_weight
        metrics = {name: term.mean() for name, term in terms.items()}
        loss = sum(weights.get(name, 1.0) * value for name, value in metrics.items())
        return loss, (metrics | {"loss": loss}, z)

    return vae_loss


def _make_discriminator_loss_fn(discriminator: Discriminator) -> Callable[..., Array]:
    def discriminator_loss(psi: PyTree, z: Array, permuted: Array) -> Array:
        # In one pass: its weights are read once.
        logits = discriminator.apply({"params": psi}, jnp.concatenate([z, permuted]))
        joint_logits, permuted_logits = jnp.split(logits, 2)
        return losses.discriminator_loss(
            joint_logits=joint_logits, permuted_logits=permuted_logits
        ).mean()

    return discriminator_loss


def _descend(
    tx: optax.GradientTransformation, gradients: PyTree, opt_state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Parameters and the optimiser's state after a step down the mean of all devices' gradients."""
    updates, opt_state = tx.update(mean_over_devices(gradients), opt_state, params)
    return optax.apply_updates(params, updates), opt_state


def _noise(
    seed: Int[Array, ""], step: Int[Array, ""], local_batch_size: int, latents: int
) -> Float[Array, "2 local latents"]:
    """Normal noise of both batches, keyed by place in the batch."""
    keys = jax.vmap(jax.random.split, out_axes=1)(example_keys(seed, step, local_batch_size))
    return jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (latents,), jnp.float32)))(keys)


def _shared_keys(seed: Int[Array, ""], step: Int[Array, ""]) -> Key[Array, "2"]:
    """Keys of what all examples of a step share: the pairs of latents, the permutations."""
    step_key = jax.random.fold_in(jax.random.key(seed), step)
    return jax.random.split(jax.random.fold_in(step_key, _SHARED_PLACE))
