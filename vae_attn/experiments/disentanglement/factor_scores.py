"""Scores from images that share one factor: FactorVAE's (both protocols) and beta-VAE's."""

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression

from vae_attn.data.factor_grid import FactorGrid
from vae_attn.experiments.disentanglement.codes import (
    BATCH_SIZE,
    CodesOf,
    codes_in_batches,
    sample_codes,
    sample_with_fixed_factor,
)
from vae_attn.experiments.latent_use import ACTIVE_NATS

# Images encoded between two sums, so that memory does not grow with the number of votes.
_IMAGES_AT_ONCE = 65_536


def active_latents(
    *, kl: Float[np.ndarray, "latents"], threshold: float = ACTIVE_NATS
) -> Bool[np.ndarray, "latents"]:
    """Which latents have not collapsed to the prior, by their mean KL over the data, in nats.

    Kim & Mnih (2018) leave collapsed latents out of their score; the threshold is ours.
    """
    return np.asarray(kl) > threshold


def factor_vae_score(
    *,
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    active: Bool[np.ndarray, "latents"] | None = None,
    num_votes: int = 800,
    samples_per_vote: int = 100,
    num_scale_samples: int = 10_000,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Kim & Mnih's score: accuracy of a majority vote on the factor that was held fixed.

    Kim & Mnih, "Disentangling by Factorising" (2018), section 4 and figure 2. A vote: fix one
    factor, draw images, divide each latent by its scale over the data; the latent that varies
    least votes for the factor. The classifier maps each latent to the factor most often voted
    for; its accuracy is counted on the same votes, which favours it slightly: see
    `held_out_factor_vae_score`. Constant factors (dSprites' colour) are never drawn.

    Args:
      codes_of: codes by image index.
      grid: the ground-truth factors.
      rng: all randomness.
      active: latents that take part, see `active_latents`; None: all that are not constant.
      num_votes: number of votes.
      samples_per_vote: L, images per vote.
      num_scale_samples: images that give each latent's standard deviation.
      batch_size: images `codes_of` is given at once.

    Returns:
      Accuracy, 0 to 1; 0 if no latent is active.
    """
    variance = _variance(codes_of, grid, rng, num_scale_samples, batch_size)
    usable = variance > 0 if active is None else active & (variance > 0)
    if not usable.any():
        return 0.0
    votes = _votes(codes_of, grid, rng, num_votes, samples_per_vote, variance, usable, batch_size)
    return float(votes.max(axis=1).sum() / num_votes)


def held_out_factor_vae_score(
    *,
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    num_train_votes: int = 10_000,
    num_eval_votes: int = 5_000,
    samples_per_vote: int = 64,
    num_scale_samples: int = 10_000,
    min_std: float = 0.05,
    batch_size: int = BATCH_SIZE,
) -> float:
    """FactorVAE's score as disentanglement_lib counts it: on votes the classifier never saw.

    Locatello et al., "Challenging Common Assumptions in the Unsupervised Learning of
    Disentangled Representations" (2019), with the sizes of its public code. Latents whose
    standard deviation over the data is below `min_std` are left out, so that this score, alone
    of the two, depends on the latents' scale. Arguments otherwise as in `factor_vae_score`.

    Returns:
      Accuracy on the evaluation votes, 0 to 1; 0 if no latent is left.
    """
    variance = _variance(codes_of, grid, rng, num_scale_samples, batch_size)
    # A constant latent has no relative variance, whatever the threshold.
    usable = (np.sqrt(variance) >= min_std) & (variance > 0)
    if not usable.any():
        return 0.0
    train, test = (
        _votes(codes_of, grid, rng, num, samples_per_vote, variance, usable, batch_size)
        for num in (num_train_votes, num_eval_votes)
    )
    factor_of_latent = train.argmax(axis=1)
    return float(test[np.arange(len(test)), factor_of_latent].sum() / num_eval_votes)


def beta_vae_score(
    *,
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    num_train: int = 10_000,
    num_eval: int = 5_000,
    pairs_per_point: int = 64,
    batch_size: int = BATCH_SIZE,
) -> float:
    """Higgins et al.'s score: accuracy of a linear classifier on mean absolute differences.

    Higgins et al., "beta-VAE" (2017), section 3, with the sizes and the logistic regression of
    Locatello et al. (2019). A point: fix one factor, draw pairs of images that share its class,
    average |z - z'| over the pairs; which factor?

    Returns:
      Accuracy on held-out points, 0 to 1.
    """
    train_x, train_y = _mean_differences(
        codes_of, grid, rng, num_train, pairs_per_point, batch_size
    )
    eval_x, eval_y = _mean_differences(codes_of, grid, rng, num_eval, pairs_per_point, batch_size)
    # Weakly penalised, unscaled codes converge slowly: the default of 100 steps may not do.
    classifier = LogisticRegression(max_iter=10_000).fit(train_x, train_y)
    return float(classifier.score(eval_x, eval_y))


def _variance(
    codes_of: CodesOf, grid: FactorGrid, rng: np.random.Generator, num: int, batch_size: int
) -> Float[np.ndarray, "latents"]:
    codes, _ = sample_codes(codes_of, grid, rng, num_samples=num, batch_size=batch_size)
    return codes.astype(np.float64).var(axis=0, ddof=1)


def _votes(
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    num_votes: int,
    samples_per_vote: int,
    variance: Float[np.ndarray, "latents"],
    usable: Bool[np.ndarray, "latents"],
    batch_size: int,
) -> Int[np.ndarray, "latents factors"]:
    """How often each latent varied least when each factor was held fixed."""
    votes = np.zeros((len(variance), len(grid.varying)), dtype=np.int64)
    scale = np.where(usable, variance, 1.0)
    for count in _parts(num_votes, samples_per_vote):
        images, factor = sample_with_fixed_factor(
            grid, rng, num_groups=count, group_size=samples_per_vote
        )
        codes = codes_in_batches(codes_of, images.ravel(), batch_size=batch_size)
        grouped = codes.reshape(*images.shape, -1).astype(np.float64)
        relative = np.where(usable, grouped.var(axis=1, ddof=1) / scale, np.inf)
        np.add.at(votes, (relative.argmin(axis=1), factor), 1)
    return votes


def _mean_differences(
    codes_of: CodesOf,
    grid: FactorGrid,
    rng: np.random.Generator,
    num_points: int,
    pairs_per_point: int,
    batch_size: int,
) -> tuple[Float[np.ndarray, "points latents"], Int[np.ndarray, "points"]]:
    """Mean |z - z'| over pairs of images that share one factor, and that factor."""
    differences, factors = [], []
    for count in _parts(num_points, 2 * pairs_per_point):
        # Each pair shares a class of its own; the factor is the same for all pairs of a point.
        varying = np.array(grid.varying)
        factor = rng.integers(len(varying), size=count)
        size = (2, count, pairs_per_point, len(grid.sizes))
        classes = rng.integers(grid.sizes, size=size)
        point = np.arange(count)
        classes[1, point, :, varying[factor]] = classes[0, point, :, varying[factor]]
        indices = grid.indices(classes)
        codes = codes_in_batches(codes_of, indices.ravel(), batch_size=batch_size)
        first, second = codes.reshape(*indices.shape, -1).astype(np.float64)
        differences.append(np.abs(first - second).mean(axis=1))
        factors.append(factor)
    return np.concatenate(differences), np.concatenate(factors)


def _parts(num_groups: int, images_per_group: int) -> list[int]:
    """Splits groups into parts that encode about `_IMAGES_AT_ONCE` images each."""
    most = max(1, _IMAGES_AT_ONCE // images_per_group)
    full, rest = divmod(num_groups, most)
    return [most] * full + [rest] * (rest > 0)
