"""The terms of the objective, each a value per image, so that any mean over devices is exact."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def reconstruction_loss(
    *,
    logits: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
) -> Float[Array, "batch"]:
    """Bernoulli negative log likelihood in nats, summed over pixels and channels.

    -sum (x log s + (1 - x) log(1 - s)), s = sigmoid(logits), computed as
    softplus(logits) - x logits, which does not overflow.
    """
    return jnp.sum(jax.nn.softplus(logits) - images * logits, axis=(1, 2, 3))


def kl_divergence(
    *, mean: Float[Array, "batch latents"], logvar: Float[Array, "batch latents"]
) -> Float[Array, "batch latents"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, per latent (VAE paper, appendix B)."""
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar)
