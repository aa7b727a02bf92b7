"""Scores from the mutual information of latents and factors: MIG and modularity."""

import numpy as np
from jaxtyping import Float, Int
from sklearn.metrics import mutual_info_score


def mutual_information(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    num_bins: int = 20,
) -> Float[np.ndarray, "latents factors"]:
    """Mutual information in nats of every latent, in equal-width bins, with every factor.

    The estimator of Locatello et al., "Challenging Common Assumptions in the Unsupervised
    Learning of Disentangled Representations" (2019). A constant latent has none.
    """
    binned = [_bin(latent, num_bins) for latent in codes.T]
    return np.array([[mutual_info_score(b, factor) for factor in factors.T] for b in binned])


def _bin(latent: Float[np.ndarray, "n"], num_bins: int) -> Int[np.ndarray, "n"]:
    lowest, highest = float(latent.min()), float(latent.max())
    if lowest == highest:
        return np.zeros(len(latent), dtype=np.int64)
    inner_edges = np.linspace(lowest, highest, num_bins + 1)[1:-1]
    return np.digitize(latent, inner_edges)


def mutual_information_gap(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    num_bins: int = 20,
) -> float:
    """MIG: how much more of each factor its best latent knows than the second best, 0 to 1.

    Chen et al., "Isolating Sources of Disentanglement in VAEs" (2018), equation 6: the gap of
    the two largest mutual informations over the factor's entropy, mean over the factors.
    A code of the true factors stays below 1 where a factor has more classes than there are
    bins: about .90 on dSprites.
    """
    information = mutual_information(codes=codes, factors=factors, num_bins=num_bins)
    entropy = np.array([mutual_info_score(factor, factor) for factor in factors.T])
    ordered = np.sort(information, axis=0)
    second = ordered[-2] if len(ordered) > 1 else 0.0
    return float(np.mean((ordered[-1] - second) / entropy))


def modularity(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    num_bins: int = 20,
) -> float:
    """How nearly each latent depends on one factor only, mean over the latents, 0 to 1.

    Ridgeway & Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss" (2018),
    section 3: one minus the squared mutual information with all factors but the best, over
    that with the best times (factors - 1). As in Locatello et al. (2019), a latent that knows
    nothing at all counts as 0.
    """
    squared = mutual_information(codes=codes, factors=factors, num_bins=num_bins) ** 2
    best = squared.max(axis=1)
    # Rounding leaves a constant latent with an information of about 1e-16 instead of 0.
    informed = best > 1e-20
    deviation = (squared.sum(axis=1) - best) / (
        np.where(informed, best, 1.0) * max(1, squared.shape[1] - 1)
    )
    return float(np.mean(np.where(informed, 1 - deviation, 0.0)))
