"""What FactorVAE's discriminator is given: codes, and codes whose latents were permuted."""

import functools
import types
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Key

from vae_attn.training.steps import AXIS

# Far below the codes' variance, which the published discriminator lets sink to 4e-4.
_LEAST_VARIANCE = 1e-8


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


def standardized(
    z: Float[Array, "local latents"], *, gradient: bool = True
) -> Float[Array, "local latents"]:
    """Codes with mean 0 and deviation 1 of each latent over the batch of all devices.

    Args:
      z: this device's share of the codes.
      gradient: whether it goes through the mean and the deviation too.
    """
    mean = lax.pmean(z.mean(axis=0), AXIS)
    deviation = jnp.sqrt(lax.pmean(((z - mean) ** 2).mean(axis=0), AXIS) + _LEAST_VARIANCE)
    if not gradient:
        mean, deviation = lax.stop_gradient((mean, deviation))
    return (z - mean) / deviation


# What the discriminator sees of the codes. `codes`: themselves, as published. `standardized`: each
# latent shifted and scaled to the same. The total correlation does not change by that, nor does its
# estimate then; and as its gradient goes through the deviation, shrinking a latent does not lower
# it. `standardized_fixed`: the same without that gradient.
INPUTS: Mapping[str, Callable[[Array], Array]] = types.MappingProxyType(
    {
        "codes": lambda z: z,
        "standardized": standardized,
        "standardized_fixed": functools.partial(standardized, gradient=False),
    }
)
