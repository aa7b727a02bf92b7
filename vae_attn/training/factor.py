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
from jaxtyping import Array, Float, Int, Key

from vae_attn import losses
from vae_attn.config import require, require_each
from vae_attn.data import sampling
from vae_attn.models.discriminator import Discriminator
from vae_attn.models.model import Model
from vae_attn.training import attention_loss
from vae_attn.training import state as state_lib
from vae_attn.training.discriminator_input import INPUTS, permute_latents
from vae_attn.training.steps import Images, Metrics, PixelsOf, example_keys, mean_over_devices
from vae_attn.training.task import Task

# A place in the batch that no example has: what all examples of a step share is keyed by it.
_SHARED_PLACE = 2**32 - 1

INITIALIZATIONS = ("normal", "glorot")  # of the discriminator


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
      discriminator_input: of `INPUTS`, what the discriminator sees of the codes.
      ad_weight: lambda of the attention disentanglement loss; 0 leaves it out (FactorVAE).
      ad_form: of `attention_loss.FORMS`.
      ad_layer: of the encoder, whose features the published form's maps weigh.
      ad_pairs: pairs of latents compared at once, all distinct: at most half the latents.
    """

    beta: float = 1.0
    gamma: float = 40.0
    discriminator_input: str = "codes"
    ad_weight: float = 0.0
    ad_form: str = "paper"
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
    for key, known in (
        ("factor.discriminator_input", INPUTS),
        ("factor.initialization", INITIALIZATIONS),
        ("factor.ad_form", attention_loss.FORMS),
    ):
        require(config, key, lambda v, known=known: v in known, f"one of {', '.join(known)}")
    if config.factor.ad_weight:
        most = config.model.latents // 2
        within = f"from 1 to {most}, as no latent of model.latents={config.model.latents} is in two"
        require(config, "factor.ad_pairs", lambda v: 1 <= v <= most, within)


def title(config: ml_collections.ConfigDict) -> str:
    """What a page calls the model."""
    options = config.factor
    weights = f"gamma {options.gamma:g}"
    if options.discriminator_input != "codes":
        weights += ", of standardized codes"
    if not options.ad_weight:
        return f"FactorVAE ({weights})"
    form = attention_loss.FORMS[options.ad_form].title
    place = f" at {options.ad_layer}" if options.ad_form == "paper" else ""
    return f"AD-FactorVAE ({weights}, lambda {options.ad_weight:g} of the {form}{place})"


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
        "discriminator": Discriminator(initialization=options.initialization),
        "tx": tx,
        "discriminator_tx": optax.adam(options.learning_rate, b1=0.5, b2=0.9),
    }
    objective = FactorObjective(
        beta=config.train.beta,
        gamma=options.gamma,
        discriminator_input=options.discriminator_input,
        ad_weight=options.ad_weight,
        ad_form=options.ad_form,
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
    discriminator_loss = _make_discriminator_loss_fn(discriminator, objective)

    def update(
        state: FactorState, images: Images, indices: Int[Array, "local 2"]
    ) -> tuple[FactorState, Metrics]:
        vae, psi = state.vae, state.discriminator
        noise = _noise(vae.seed, vae.step, len(indices), model.latents)
        pairs_key, permutation_key = _shared_keys(vae.seed, vae.step)
        pairs = draw_pairs(pairs_key, latents=model.latents, pairs=objective.ad_pairs)
        x, other_x = pixels_of(images[indices[:, 0]]), pixels_of(images[indices[:, 1]])

        gradients, (metrics, z) = jax.grad(vae_loss, has_aux=True)(
            vae.params, psi, x, other_x, noise[0], pairs
        )
        params, opt_state = _descend(tx, gradients, vae.opt_state, vae.params)

        mean, logvar = model.apply({"params": params}, other_x, method="encode")
        permuted = permute_latents(
            permutation_key, losses.reparameterize(mean=mean, logvar=logvar, noise=noise[1])
        )
        gradients, judged = jax.grad(discriminator_loss, has_aux=True)(psi, z, permuted)
        psi_opt = state.discriminator_opt_state
        psi, psi_opt = _descend(discriminator_tx, gradients, psi_opt, psi)
        state = FactorState(
            vae=vae.replace(step=vae.step + 1, params=params, opt_state=opt_state),
            discriminator=psi,
            discriminator_opt_state=psi_opt,
        )
        return state, mean_over_devices(metrics | judged)

    return update


def _make_vae_loss_fn(
    model: Model, discriminator: Discriminator, objective: FactorObjective
) -> Callable[..., tuple]:
    """The VAE's loss of a batch, with its terms and codes; the discriminator's parameters stay."""
    layer, sees = objective.ad_layer, INPUTS[objective.discriminator_input]

    def vae_loss(
        params: PyTree, psi: PyTree, x: Array, others: Array, noise: Array, pairs: Array
    ) -> tuple:
        variables = {"params": params}
        features = model.apply(variables, x, layer, method="features")
        mean, logvar = model.apply(variables, features, layer, method="head")
        z = losses.reparameterize(mean=mean, logvar=logvar, noise=noise)
        logits = model.apply(variables, z, method="decode")
        terms = losses.elbo_terms(logits=logits, images=x, mean=mean, logvar=logvar)
        terms["total_correlation"] = losses.total_correlation(
            logits=discriminator.apply({"params": psi}, sees(z))
        )
        weights = {"reconstruction": 1.0, "kl": objective.beta}
        weights["total_correlation"] = objective.gamma
        if objective.ad_weight:
            seen = attention_loss.Seen(model, variables, layer, x, features, others)
            found, empty = attention_loss.attention_loss(objective.ad_form, seen, pairs)
            terms |= {"attention_disentanglement": found, "empty_maps": empty}
            weights["attention_disentanglement"] = objective.ad_weight
        metrics = {name: term.mean() for name, term in terms.items()}
        loss = sum(weight * metrics[name] for name, weight in weights.items())
        return loss, (metrics | {"loss": loss}, z)

    return vae_loss


def _make_discriminator_loss_fn(
    discriminator: Discriminator, objective: FactorObjective
) -> Callable[..., tuple[Array, Metrics]]:
    """The discriminator's loss, with what is followed of it."""
    sees = INPUTS[objective.discriminator_input]

    def discriminator_loss(psi: PyTree, z: Array, permuted: Array) -> tuple[Array, Metrics]:
        # In one pass: its weights are read once.
        seen = jnp.concatenate([sees(z), sees(permuted)])
        joint, apart = jnp.split(discriminator.apply({"params": psi}, seen), 2)
        loss = losses.discriminator_loss(joint_logits=joint, permuted_logits=apart).mean()
        right = jnp.concatenate([joint[:, 0] > joint[:, 1], apart[:, 1] > apart[:, 0]])
        return loss, {"discriminator_loss": loss, "discriminator_accuracy": right.mean()}

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
