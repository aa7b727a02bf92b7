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
    per_pixel = jax.nn.softplus(logits) - images * logits
    # A product with ones: XLA's CPU backend adds a batch's pixels one by one, and loses 2e-4.
    per_pixel = per_pixel.reshape(logits.shape[0], -1)
    return per_pixel @ jnp.ones(per_pixel.shape[1], per_pixel.dtype)


def kl_divergence(
    *, mean: Float[Array, "batch latents"], logvar: Float[Array, "batch latents"]
) -> Float[Array, "batch latents"]:
    """KL(N(mean, exp(logvar)) || N(0, 1)) in nats, per latent (VAE paper, appendix B)."""
    return 0.5 * (mean**2 + jnp.exp(logvar) - 1.0 - logvar)


def elbo_terms(
    *,
    logits: Float[Array, "batch height width channels"],
    images: Float[Array, "batch height width channels"],
    mean: Float[Array, "batch latents"],
    logvar: Float[Array, "batch latents"],
) -> dict[str, Float[Array, "batch"]]:
    """The two terms of the negative ELBO in nats per image: `reconstruction` and `kl`."""
    return {
        "reconstruction": reconstruction_loss(logits=logits, images=images),
        "kl": kl_divergence(mean=mean, logvar=logvar).sum(axis=1),
    }


def total_correlation(*, logits: Float[Array, "batch 2"]) -> Float[Array, "batch"]:
    """Density-ratio estimate of the total correlation, in nats (Kim & Mnih 2018, equation 3).

    log D(z) - log(1 - D(z)) at each z; the mean over q(z) estimates KL(q(z) || prod_i q(z_i)).

    Args:
      logits: of the discriminator: "from q(z)", "from the product of its marginals".
    """
    return logits[:, 0] - logits[:, 1]


def discriminator_loss(
    *, joint_logits: Float[Array, "batch 2"], permuted_logits: Float[Array, "batch 2"]
) -> Float[Array, "batch"]:
    """Cross entropy of the discriminator in nats, the mean of its two classes.

    Args:
      joint_logits: of codes of images, class 0.
      permuted_logits: of codes whose latents were permuted over the batch, class 1.
    """
    joint = -jax.nn.log_softmax(joint_logits)[:, 0]
    permuted = -jax.nn.log_softmax(permuted_logits)[:, 1]
    return 0.5 * (joint + permuted)


def attention_disentanglement(
    *, first: Float[Array, "batch h w"], second: Float[Array, "batch h w"]
) -> Float[Array, "batch"]:
    """L_AD = 2 sum min(A1, A2) / sum (A1 + A2): the overlap of two latents' maps.

    Liu et al. (2020), section 3.3, the sums running over one image's pixels. 0 where the maps
    share no pixel, 1 where they agree; scaling both leaves it as it is.

    Args:
      first: A1, at least 0.
      second: A2, the same of another latent.

    Returns:
      One value per image, 0 to 1; 0 where both maps are empty, which have nothing to disentangle.
    """
    overlap = jnp.minimum(first, second).sum(axis=(1, 2))
    total = (first + second).sum(axis=(1, 2))
    return 2.0 * overlap / jnp.where(total > 0, total, 1.0)
