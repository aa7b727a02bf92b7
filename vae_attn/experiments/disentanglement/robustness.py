"""Interventional robustness: does a latent stay put while the other factors move?"""

import numpy as np
from jaxtyping import Float, Int


def interventional_robustness(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    quantile: float = 0.99,
) -> float:
    """IRS: one minus the relative deviation of each latent while its own factor is fixed.

    Suter et al., "Robustly Disentangled Causal Mechanisms" (2019), as its authors' code
    estimates it. For a factor: group the images by its class; take in each group the
    `quantile` (1 is the paper's maximum, .99 its authors' code) of the distance to the group's
    mean code; average over the groups and divide by the latent's largest deviation over all
    images. A latent's score belongs to its best factor; the mean over the latents is weighted
    by their largest deviation, so that scaling a latent changes the score unless all latents
    are scaled alike.

    Returns:
      The score, 0 to 1; 0 if all latents are constant.
    """
    codes = codes.astype(np.float64)
    largest = np.abs(codes - codes.mean(axis=0)).max(axis=0)
    codes, largest = codes[:, largest > 0], largest[largest > 0]
    if not len(largest):
        return 0.0
    deviation = np.stack([_deviation(codes, factor, quantile) for factor in factors.T], axis=1)
    robustness = (1 - deviation / largest[:, None]).max(axis=1)
    return float(np.average(robustness, weights=largest))


def _deviation(
    codes: Float[np.ndarray, "n latents"], factor: Int[np.ndarray, "n"], quantile: float
) -> Float[np.ndarray, "latents"]:
    """Deviation from the mean of a factor's class, by quantile, mean over the classes."""
    groups = [codes[factor == label] for label in np.unique(factor)]
    return np.mean(
        [np.quantile(np.abs(group - group.mean(axis=0)), quantile, axis=0) for group in groups],
        axis=0,
    )
