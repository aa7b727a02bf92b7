"""Scores from predicting the factors from the code: SAP, DCI, explicitness."""

import numpy as np
import scipy.stats
from jaxtyping import Float, Int
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC


def separated_attribute_predictability(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    test_codes: Float[np.ndarray, "m latents"],
    test_factors: Int[np.ndarray, "m factors"],
) -> float:
    """SAP: how much better each factor's best latent predicts it than the second best.

    Kumar et al., "Variational Inference of Disentangled Latent Concepts from Unlabeled
    Observations" (2018), section 3, in the discrete form of Locatello et al. (2019): accuracy
    of a linear support vector machine (C = 0.01, balanced classes) on one latent. One line of
    thresholds cannot tell 40 classes apart, so that a code of the true factors scores about
    .24 on dSprites; the penalty makes the score depend on the latents' scale.
    """
    accuracy = np.array(
        [
            [
                _one_latent_accuracy(codes[:, [i]], factors[:, k], test_codes[:, [i]], test)
                for k, test in enumerate(test_factors.T)
            ]
            for i in range(codes.shape[1])
        ]
    )
    ordered = np.sort(accuracy, axis=0)
    second = ordered[-2] if len(ordered) > 1 else 0.0
    return float(np.mean(ordered[-1] - second))


def _one_latent_accuracy(
    codes: Float[np.ndarray, "n 1"],
    factor: Int[np.ndarray, "n"],
    test_codes: Float[np.ndarray, "m 1"],
    test_factor: Int[np.ndarray, "m"],
) -> float:
    # The primal problem: same optimum as the dual, found without random restarts.
    machine = LinearSVC(C=0.01, class_weight="balanced", dual=False)
    return float(machine.fit(codes, factor).score(test_codes, test_factor))


def importance_scores(*, importance: Float[np.ndarray, "latents factors"]) -> tuple[float, float]:
    """Disentanglement and completeness of an importance matrix R, each 0 to 1.

    Eastwood & Williams, "A Framework for the Quantitative Evaluation of Disentangled
    Representations" (2018), section 2. Disentanglement: one minus the entropy, to the base of
    the number of factors, of each latent's row of R, weighted by the row's share of R.
    Completeness: the same of each factor's column, to the base of the number of latents; mean
    over factors weighted by the column's share.
    """
    return _concentration(importance), _concentration(importance.T)


def _concentration(importance: Float[np.ndarray, "rows columns"]) -> float:
    total = importance.sum(axis=1)
    used = importance[total > 0]
    if importance.shape[1] == 1 or not len(used):
        return float(len(used) > 0)
    entropy = scipy.stats.entropy(used, base=importance.shape[1], axis=1)
    return float(np.average(1 - entropy, weights=total[total > 0]))


def dci(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    test_codes: Float[np.ndarray, "m latents"],
    test_factors: Int[np.ndarray, "m factors"],
    seed: int,
    num_trees: int = 20,
) -> dict[str, float]:
    """Disentanglement, completeness and informativeness of Eastwood & Williams (2018).

    Importances come from one random forest per factor, one of the paper's regressors, in place
    of disentanglement_lib's gradient boosting, which fits one tree per class and round, 40 for
    dSprites' orientation: keep this in mind beside other implementations' numbers. Every split
    looks at all latents; drawing a few, as forests usually do, would credit latents for
    a factor only because the right one was not among the drawn.

    Returns:
      `disentanglement` and `completeness` as in `importance_scores`; `informativeness`, the
      accuracy on the test points (the paper reports an error), mean over the factors.
    """
    importance, accuracy = [], []
    for factor, test_factor in zip(factors.T, test_factors.T, strict=True):
        forest = RandomForestClassifier(num_trees, max_features=None, random_state=seed)
        forest.fit(codes, factor)
        importance.append(forest.feature_importances_)
        accuracy.append(forest.score(test_codes, test_factor))
    disentanglement, completeness = importance_scores(importance=np.stack(importance, axis=1))
    return {
        "disentanglement": disentanglement,
        "completeness": completeness,
        "informativeness": float(np.mean(accuracy)),
    }


def explicitness(
    *,
    codes: Float[np.ndarray, "n latents"],
    factors: Int[np.ndarray, "n factors"],
    test_codes: Float[np.ndarray, "m latents"],
    test_factors: Int[np.ndarray, "m factors"],
) -> float:
    """How easily each class of each factor is read off the code linearly, .5 (chance) to 1.

    Ridgeway & Mozer, "Learning Deep Disentangled Embeddings with the F-Statistic Loss" (2018),
    section 3: area under the ROC curve of one-versus-rest logistic regression on the
    standardised code, mean over the classes of a factor, then over factors; here on test
    points. As in Locatello et al. (2019) the classes' probabilities are first divided by their
    sum, without which the middle classes of an ordered factor could hardly be told apart;
    among 40 ordered classes they still overlap, so that a code of the true factors of
    dSprites scores below 1.
    """
    areas = []
    for factor, test_factor in zip(factors.T, test_factors.T, strict=True):
        one_versus_rest = OneVsRestClassifier(LogisticRegression(max_iter=1000))
        classifier = make_pipeline(StandardScaler(), one_versus_rest)
        probability = classifier.fit(codes, factor).predict_proba(test_codes)
        areas.append(
            [
                roc_auc_score(test_factor == label, probability[:, column])
                for column, label in enumerate(np.unique(factor))
                if 0 < np.sum(test_factor == label) < len(test_factor)
            ]
        )
    return float(np.mean([np.mean(area) for area in areas]))
