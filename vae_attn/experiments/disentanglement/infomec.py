"""InfoMEC: modularity, explicitness and compactness as information (Hsu et al. 2023)."""

import warnings

import numpy as np
from jaxtyping import Float, Int
from sklearn.exceptions import ConvergenceWarning
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, mutual_info_score
from sklearn.preprocessing import StandardScaler

_NEIGHBORS = 10  # of the estimator of mutual information
_LEAST_RANGE = 1 / 20  # of the largest latent's range, below which a latent is left out
_ITERATIONS = 100  # of the logistic regression, converged or not


def infomec(
    *, codes: Float[np.ndarray, "n latents"], factors: Int[np.ndarray, "n factors"], seed: int
) -> dict[str, float]:
    """InfoM, InfoE and InfoC of continuous latents, each 0 to 1.

    Hsu et al., "Disentanglement via Latent Quantization" (2023), section 4, with the settings of
    its public code (kylehkhsu/latent_quantization). InfoM and InfoC: how far each latent informs
    of one factor only, and each factor is known by one latent only, as the largest share of the
    normalised mutual informations, of latents whose range is more than 1/20 of the largest. InfoE:
    how much of the factors a linear classifier on all latents predicts, on the points that it
    learned from: one minus its cross entropy over that of a classifier that sees nothing.

    Where the definition is 0 / 0, a latent that knows nothing counts as 0 in InfoM, a factor of
    which nothing is known as 0 in InfoC, and the only latent as complete.

    Args:
      codes: at least a hundred points.
      factors: their classes.
      seed: of the noise of 1e-10 with which the estimator breaks ties.

    Returns:
      `modularity` (InfoM), `explicitness` (InfoE) and `compactness` (InfoC).
    """
    codes = codes.astype(np.float64)
    ranges = np.ptp(codes, axis=0)
    used = ranges > ranges.max() * _LEAST_RANGE
    information = normalized_information(codes=codes[:, used], factors=factors, seed=seed)
    return {
        "modularity": _mean_share(information.T),
        "explicitness": explicitness(codes=codes, factors=factors),
        "compactness": _mean_share(information),
    }


def normalized_information(
    *, codes: Float[np.ndarray, "n latents"], factors: Int[np.ndarray, "n factors"], seed: int
) -> Float[np.ndarray, "factors latents"]:
    """Mutual information of each factor with each latent, over the factor's entropy.

    Between the discrete factor and the continuous latent it is estimated by nearest neighbours
    (Ross 2014), here ten.
    """
    if not codes.shape[1]:
        return np.zeros((factors.shape[1], 0))
    standardized = StandardScaler().fit_transform(codes)
    rows = []
    for factor in factors.T:
        found = mutual_info_classif(
            standardized,
            factor,
            discrete_features=False,
            n_neighbors=_NEIGHBORS,
            random_state=seed,
        )
        rows.append(found / mutual_info_score(factor, factor))
    return np.stack(rows)


def _mean_share(information: Float[np.ndarray, "rows columns"]) -> float:
    """Mean over the rows of the largest one's share in the row, from 0 (all alike) to 1."""
    rows, columns = information.shape
    if not rows or not columns:
        return 0.0
    total, least = information.sum(axis=1), 1 / columns
    share = np.where(total > 0, information.max(axis=1) / np.where(total > 0, total, 1.0), least)
    return float((share.mean() - least) / (1 - least)) if columns > 1 else float(np.mean(total > 0))


def explicitness(
    *, codes: Float[np.ndarray, "n latents"], factors: Int[np.ndarray, "n factors"]
) -> float:
    """InfoE: one minus H(s | z) of a logistic regression over H(s) of a null one, mean of s."""
    standardized = StandardScaler().fit_transform(codes)
    null = np.zeros_like(standardized)
    kept = [
        1 - _cross_entropy(standardized, factor) / _cross_entropy(null, factor)
        for factor in factors.T
    ]
    return float(np.mean(kept))


def _cross_entropy(codes: Float[np.ndarray, "n latents"], factor: Int[np.ndarray, "n"]) -> float:
    # Without a penalty; in this way scikit-learn of any version takes it.
    model = LogisticRegression(C=np.inf, class_weight="balanced", max_iter=_ITERATIONS)
    with warnings.catch_warnings():
        # The definition ends there.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(codes, factor)
    return float(log_loss(factor, model.predict_proba(codes), labels=model.classes_))
