"""All disentanglement scores of a model at once; each alone is in the modules imported here."""

from collections.abc import Collection
from typing import Any

import numpy as np
from jaxtyping import Bool

from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments.disentanglement import (
    factor_scores,
    mutual_information,
    predictability,
    robustness,
)
from vae_attn.experiments.disentanglement.codes import (
    BATCH_SIZE,
    CodesOf,
    encode_grid,
    sample_codes,
)

SCORES = (
    "factor_vae",
    "held_out_factor_vae",
    "beta_vae",
    "mig",
    "sap",
    "dci",
    "irs",
    "modularity",
    "explicitness",
)


def disentanglement_scores(
    *,
    codes_of: CodesOf,
    grid: FactorGrid,
    seed: int,
    active: Bool[np.ndarray, "latents"] | None = None,
    scores: Collection[str] = SCORES,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_votes: int = 800,
    samples_per_vote: int = 100,
    batch_size: int = BATCH_SIZE,
) -> dict[str, float]:
    """Computes disentanglement scores of any model on any grid of ground-truth factors.

    Where the held-out FactorVAE score or the beta-VAE score is asked for, which together look
    at more images than dSprites has, the whole grid is encoded once and looked up from then on.

    Args:
      codes_of: codes by image index, see `vae_attn.experiments.disentanglement.codes`.
      grid: the ground-truth factors; constant ones are left out of every score.
      seed: each score has randomness of its own from it, whichever others are computed.
      active: latents that take part in Kim & Mnih's score, see `factor_scores.active_latents`.
      scores: which of `SCORES` to compute.
      num_train: images (for FactorVAE and beta-VAE: groups of 64) that classifiers learn from.
      num_test: the same, that they are judged by.
      num_votes: votes of Kim & Mnih's score.
      samples_per_vote: images a vote of Kim & Mnih's score.
      batch_size: images `codes_of` is given at once.

    Returns:
      One figure a score by its name, 0 to 1, in the order of `SCORES`; `dci` gives three:
      `dci_disentanglement`, `dci_completeness`, `dci_informativeness`.

    Raises:
      UserError: an unknown score; codes of a wrong shape or not finite.
    """
    unknown = set(scores) - set(SCORES)
    if unknown:
        raise UserError(f"score {min(unknown)!r} is unknown; choose from {', '.join(SCORES)}.")
    if {"held_out_factor_vae", "beta_vae"} & set(scores):
        codes_of = encode_grid(codes_of, grid, batch_size=batch_size).__getitem__

    def fixed_factor(name: str) -> dict[str, Any]:
        rng = np.random.default_rng([seed, SCORES.index(name)])
        return {"codes_of": codes_of, "grid": grid, "rng": rng, "batch_size": batch_size}

    points: dict[str, Any] = {}
    if set(scores) & {"mig", "sap", "dci", "irs", "modularity", "explicitness"}:
        points = _points(codes_of, grid, seed, num_train, num_test, batch_size)
    train = {key: points.get(key) for key in ("codes", "factors")}
    compute = {
        "factor_vae": lambda: factor_scores.factor_vae_score(
            **fixed_factor("factor_vae"),
            active=active,
            num_votes=num_votes,
            samples_per_vote=samples_per_vote,
            num_scale_samples=num_train,
        ),
        "held_out_factor_vae": lambda: factor_scores.held_out_factor_vae_score(
            **fixed_factor("held_out_factor_vae"),
            num_train_votes=num_train,
            num_eval_votes=num_test,
            num_scale_samples=num_train,
        ),
        "beta_vae": lambda: factor_scores.beta_vae_score(
            **fixed_factor("beta_vae"), num_train=num_train, num_eval=num_test
        ),
        "mig": lambda: mutual_information.mutual_information_gap(**train),
        "sap": lambda: predictability.separated_attribute_predictability(**points),
        "dci": lambda: predictability.dci(**points, seed=seed),
        "irs": lambda: robustness.interventional_robustness(**train),
        "modularity": lambda: mutual_information.modularity(**train),
        "explicitness": lambda: predictability.explicitness(**points),
    }
    results: dict[str, float] = {}
    for name in SCORES:
        if name in scores:
            score = compute[name]()
            parts = score if isinstance(score, dict) else {"": score}
            results |= {f"{name}_{part}".rstrip("_"): value for part, value in parts.items()}
    return results


def _points(
    codes_of: CodesOf,
    grid: FactorGrid,
    seed: int,
    num_train: int,
    num_test: int,
    batch_size: int,
) -> dict[str, np.ndarray]:
    """The train and test points that all scores on single images share."""
    rng = np.random.default_rng([seed, len(SCORES)])
    codes, factors = sample_codes(codes_of, grid, rng, num_samples=num_train, batch_size=batch_size)
    test_codes, test_factors = sample_codes(
        codes_of, grid, rng, num_samples=num_test, batch_size=batch_size
    )
    return {
        "codes": codes,
        "factors": factors,
        "test_codes": test_codes,
        "test_factors": test_factors,
    }
