"""Does the training do what it is meant to: the codes' scale, and what the discriminator sees."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float

# Metrics of a checkpoint, beside the training's own.
GAUSSIAN, DEVIATION, ACTIVE = "gaussian_total_correlation", "latent_deviation", "active_latents"

_LEAST = 0.1  # nats; a smaller total correlation is none to speak of
_SHARE = 0.5  # of the Gaussian part, below which the discriminator counts as blind
_RECENT = 5  # lines of the training's metrics over which its estimate is averaged

Curves = Mapping[str, tuple[list[int], list[float]]]


def covariance(
    *, mean: Float[np.ndarray, "n latents"], logvar: Float[np.ndarray, "n latents"]
) -> Float[np.ndarray, "latents latents"]:
    """Covariance of the codes, over images and noise: the means' own plus the mean variance."""
    mean, logvar = mean.astype(np.float64), logvar.astype(np.float64)
    of_means = np.atleast_2d(np.cov(mean, rowvar=False))
    return of_means + np.diag(np.exp(logvar).mean(axis=0))


def gaussian_total_correlation(*, covariance: Float[np.ndarray, "latents latents"]) -> float:
    """Total correlation in nats of a Gaussian with this covariance: -log det(correlations) / 2.

    That of the codes is no less where each latent's aggregate is Gaussian. It does not depend on
    the latents' scale.
    """
    deviation = np.sqrt(np.diag(covariance))
    _, log_determinant = np.linalg.slogdet(covariance / np.outer(deviation, deviation))
    return float(max(-0.5 * log_determinant, 0.0))


def of_codes(
    *, mean: Float[np.ndarray, "n latents"], logvar: Float[np.ndarray, "n latents"]
) -> dict[str, float]:
    """What is followed at every checkpoint: the Gaussian part, and each latent's deviation."""
    found = covariance(mean=mean, logvar=logvar)
    deviations = np.sqrt(np.diag(found))
    return {GAUSSIAN: gaussian_total_correlation(covariance=found)} | {
        f"{DEVIATION}/z{k}": float(deviation) for k, deviation in enumerate(deviations)
    }


def blindness(curves: Curves) -> str:
    """A sentence if the discriminator does not see the codes' total correlation; "" if it does.

    Args:
      curves: the run's metrics, steps and values by name.
    """
    if "discriminator_loss" not in curves or GAUSSIAN not in curves:
        return ""
    estimated = float(np.mean(curves["total_correlation"][1][-_RECENT:]))
    there = curves[GAUSSIAN][1][-1]
    if there < _LEAST or estimated >= _SHARE * there:
        return ""
    return (
        f"The discriminator is blind: it puts the codes' total correlation at {estimated:.2f} "
        f"nats, and their covariance alone accounts for {there:.2f}. What it does not see, the "
        "training does not remove."
    )
