"""The terms of the objective, each a value per image, so that any mean over devices is exact."""

import math

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


def reparameterize(
    *,
    mean: Float[Array, "batch latents"],
    logvar: Float[Array, "batch latents"],
    noise: Float[Array, "batch latents"],
) -> Float[Array, "batch latents"]:
    """Samples z of q(z | x), of standard normal noise (VAE paper, section 2.4)."""
    return mean + jnp.exp(logvar / 2) * noise


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


def squared_cosine(
    *, first: Float[Array, "batch *shape"], second: Float[Array, "batch *shape"]
) -> Float[Array, "batch"]:
    """How far two latents' signed maps are from orthogonal: (M1 . M2)^2 / (|M1|^2 |M2|^2).

    Sums over one image's pixels. 0 where the maps are orthogonal, such as where they weigh the same
    edges with signs that cancel; 1 where one is a multiple of the other. Scaling either leaves it
    as it is.

    Returns:
      One value per image, 0 to 1; 0 where a map is empty, which has nothing to disentangle.
    """
    # Scaled to a maximum of 1: the squares of small maps would vanish in float32.
    first, second = (_of_unit_maximum(x.reshape(x.shape[0], -1)) for x in (first, second))
    product = (first * second).sum(axis=1)
    norms = (first**2).sum(axis=1) * (second**2).sum(axis=1)
    return product**2 / jnp.where(norms > 0, norms, 1.0)


def _of_unit_maximum(maps: Float[Array, "batch n"]) -> Float[Array, "batch n"]:
    largest = jax.lax.stop_gradient(jnp.abs(maps).max(axis=1, keepdims=True))
    return maps / jnp.where(largest > 0, largest, 1.0)


def kl_decomposition(
    *,
    z: Float[Array, "batch latents"],
    mean: Float[Array, "batch latents"],
    logvar: Float[Array, "batch latents"],
    all_mean: Float[Array, "all latents"],
    all_logvar: Float[Array, "all latents"],
) -> dict[str, Float[Array, "batch"]]:
    """The three parts of the KL divergence (Chen et al. 2018, equation 2), in nats, at each z.

    log q(z|x) - log p(z) = mutual_information + total_correlation + dimension_wise_kl, with
    log q(z|x) - log q(z), log q(z) - sum_i log q(z_i) and sum_i (log q(z_i) - log p(z_i)). The
    density q(z) is the mean of q(z|x) over the images of the batch. Chen et al.'s minibatch
    weighted sampling (their equation 5) divides by the number of training images besides: a
    constant without a gradient, with which the parts would be far off.

    Args:
      z: a sample of q(z|x) of each image.
      mean: of q(z|x) of the same images.
      logvar: likewise.
      all_mean: of all images of the batch, those of other devices included.
      all_logvar: likewise.
    """
    of_each = _log_normal(z[:, None], all_mean, all_logvar)  # (batch, all, latents)
    count = math.log(all_mean.shape[0])
    joint = jax.nn.logsumexp(of_each.sum(axis=2), axis=1) - count
    marginals = (jax.nn.logsumexp(of_each, axis=1) - count).sum(axis=1)
    conditional = _log_normal(z, mean, logvar).sum(axis=1)
    prior = _log_normal(z, jnp.zeros_like(z), jnp.zeros_like(z)).sum(axis=1)
    return {
        "mutual_information": conditional - joint,
        "total_correlation": joint - marginals,
        "dimension_wise_kl": marginals - prior,
    }


def _log_normal(
    z: Float[Array, "*#shape"], mean: Float[Array, "*#shape"], logvar: Float[Array, "*#shape"]
) -> Float[Array, "*shape"]:
    """Log density of N(mean, exp(logvar)) at z, elementwise."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mean) ** 2 * jnp.exp(-logvar))
