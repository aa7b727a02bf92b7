"""Which latents a model uses: the others have collapsed to the prior, and carry nothing."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vae_attn import losses

ACTIVE_NATS = 0.01  # a latent is in use if its mean KL over images is more; the threshold is ours


def latent_kl(
    mean: Float[np.ndarray | Array, "n latents"], logvar: Float[np.ndarray | Array, "n latents"]
) -> Float[np.ndarray, "latents"]:
    """Each latent's mean KL divergence from the prior over images, in nats."""
    kl = losses.kl_divergence(mean=jnp.asarray(mean), logvar=jnp.asarray(logvar))
    return np.asarray(kl).mean(axis=0)
