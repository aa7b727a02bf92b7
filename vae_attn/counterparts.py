"""What the model itself considers normal: the counterparts that contrast compares with."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

Decode = Callable[[Float[Array, "batch latents"]], Float[Array, "batch height width c"]]


def project(
    decode: Decode,
    images: Float[Array, "batch height width c"],
    z: Float[Array, "batch latents"],
    *,
    steps: int,
    prior_weight: float = 1.0,
    learning_rate: float = 0.1,
) -> Float[Array, "batch latents"]:
    """Pulls latents to where the model explains most of the image and the rest is normal.

    Minimises sum |x - decode(z)| + prior_weight |z|^2 / 2 by Adam, after the energy-based
    projection of Dehaene et al. (ICLR 2020). The absolute error lets a defect stand out that a
    squared one would spread over the image; the prior keeps z among the normal images.

    Args:
      decode: from latents to images in [0, 1]; images must not interact.
      images: x.
      z: where to start, the encoder's mean.
      steps: of Adam; 0 leaves z as it is.
      prior_weight: of the standard normal prior, in units of the pixels' range.
      learning_rate: of Adam.

    Returns:
      The latents.
    """

    def energy(z: Float[Array, "batch latents"]) -> Float[Array, ""]:
        return jnp.sum(jnp.abs(images - decode(z))) + prior_weight * jnp.sum(z**2) / 2

    tx = optax.adam(learning_rate)
    state = tx.init(z)
    # Not lax.scan: in a loop XLA's CPU backend runs convolutions about ten times slower.
    for _ in range(steps):
        updates, state = tx.update(jax.grad(energy)(z), state)
        z = optax.apply_updates(z, updates)
    return z
