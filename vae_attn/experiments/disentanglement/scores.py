"""The rows of disentanglement scores: add one here, and every run, table and page has it."""

import dataclasses
import zlib
from collections.abc import Callable, Collection

import numpy as np
from jaxtyping import Bool, Float, Int

from vae_attn.data.factor_grid import FactorGrid
from vae_attn.errors import UserError
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.disentanglement import (
    factor_scores,
    infomec,
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
from vae_attn.experiments.scores import Score


@dataclasses.dataclass(frozen=True, eq=False)
class Codes:
    """A model's codes of any images of a grid, and how many to look at.

    The need `images`; and `grid`, where a score looks at more images than a grid may have, so that
    all are encoded once.

    Attributes:
      codes_of: codes by image index, see `codes`.
      grid: the ground-truth factors; constant ones are left out of every score.
      rng: all randomness of one score.
      active: latents that take part in Kim & Mnih's score, see `factor_scores.active_latents`.
      num_train: images, or groups of images, that classifiers learn from.
      num_test: the same, that they are judged by.
      num_votes: votes of Kim & Mnih's score.
      samples_per_vote: images per vote of Kim & Mnih's score.
      batch_size: images `codes_of` is given at once.
    """

    codes_of: CodesOf
    grid: FactorGrid
    rng: np.random.Generator
    active: Bool[np.ndarray, "latents"] | None
    num_train: int
    num_test: int
    num_votes: int
    samples_per_vote: int
    batch_size: int


@dataclasses.dataclass(frozen=True, eq=False)
class Points:
    """Codes and factors of images drawn from the grid. The need `points`.

    Attributes:
      codes: to learn from.
      factors: classes of the varying factors, likewise.
      test_codes: to be judged by.
      test_factors: likewise.
      seed: of classifiers.
    """

    codes: Float[np.ndarray, "n latents"]
    factors: Int[np.ndarray, "n factors"]
    test_codes: Float[np.ndarray, "m latents"]
    test_factors: Int[np.ndarray, "m factors"]
    seed: int

    @property
    def train(self) -> dict[str, np.ndarray]:
        """For scores that learn nothing."""
        return {"codes": self.codes, "factors": self.factors}

    @property
    def both(self) -> dict[str, np.ndarray]:
        """For scores that learn from some and are judged by others."""
        return self.train | {"test_codes": self.test_codes, "test_factors": self.test_factors}


def _factor_vae(x: Codes) -> float:
    return factor_scores.factor_vae_score(
        codes_of=x.codes_of,
        grid=x.grid,
        rng=x.rng,
        active=x.active,
        num_votes=x.num_votes,
        samples_per_vote=x.samples_per_vote,
        num_scale_samples=x.num_train,
        batch_size=x.batch_size,
    )


def _held_out_factor_vae(x: Codes) -> float:
    return factor_scores.held_out_factor_vae_score(
        codes_of=x.codes_of,
        grid=x.grid,
        rng=x.rng,
        num_train_votes=x.num_train,
        num_eval_votes=x.num_test,
        num_scale_samples=x.num_train,
        batch_size=x.batch_size,
    )


def _beta_vae(x: Codes) -> float:
    return factor_scores.beta_vae_score(
        codes_of=x.codes_of,
        grid=x.grid,
        rng=x.rng,
        num_train=x.num_train,
        num_eval=x.num_test,
        batch_size=x.batch_size,
    )


# Columns of the table: what others' values stand under.
TRUE, FACTOR_VAE, AD_FACTOR_VAE = "true factors", "FactorVAE", "AD-FactorVAE"

SCORES = (
    Score(
        "factor_vae",
        "images",
        _factor_vae,
        note="factor_vae is Kim & Mnih's score, 800 votes counted on themselves. A random rotation "
        "of the true factors still scores .78 to .87 on it.",
        references={
            TRUE: "1",
            FACTOR_VAE: "about .82 (recalled)",
            AD_FACTOR_VAE: "about .90 (recalled)",
        },
    ),
    Score(
        "held_out_factor_vae",
        "grid",
        _held_out_factor_vae,
        note="held_out_factor_vae is Locatello et al.'s, on votes that the classifier never saw.",
    ),
    Score("beta_vae", "grid", _beta_vae, references={TRUE: "1"}),
    Score(
        "mig",
        "points",
        lambda x: mutual_information.mutual_information_gap(**x.train),
        references={TRUE: ".90"},
    ),
    Score(
        "sap",
        "points",
        lambda x: predictability.separated_attribute_predictability(**x.both),
        references={TRUE: ".24"},
    ),
    Score("dci", "points", lambda x: predictability.dci(**x.both, seed=x.seed)),
    Score("irs", "points", lambda x: robustness.interventional_robustness(**x.train)),
    Score(
        "modularity",
        "points",
        lambda x: mutual_information.modularity(**x.train),
        references={TRUE: "1"},
    ),
    Score("explicitness", "points", lambda x: predictability.explicitness(**x.both)),
    Score(
        "infomec",
        "points",
        lambda x: infomec.infomec(**x.train, seed=x.seed),
        note="infomec: Hsu et al.'s InfoM (modularity), InfoE (explicitness), InfoC (compactness).",
    ),
)
NAMES = tuple(row.name for row in SCORES)


def disentanglement_scores(
    *,
    codes_of: CodesOf,
    grid: FactorGrid,
    seed: int,
    active: Bool[np.ndarray, "latents"] | None = None,
    scores: Collection[str] = NAMES,
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
      codes_of: codes by image index, see `codes`.
      grid: the ground-truth factors; constant ones are left out of every score.
      seed: with its name it seeds each score, whichever others are computed.
      active: latents that take part in Kim & Mnih's score, see `factor_scores.active_latents`.
      scores: which to compute, by name.
      num_train: images (for FactorVAE and beta-VAE: groups of 64) that classifiers learn from.
      num_test: the same, that they are judged by.
      num_votes: votes of Kim & Mnih's score.
      samples_per_vote: images per vote of Kim & Mnih's score.
      batch_size: images `codes_of` is given at once.

    Returns:
      A value for each score by its name, 0 to 1, in the order of `SCORES`; `dci` gives three:
      `dci_disentanglement`, `dci_completeness`, `dci_informativeness`, and so does `infomec`.

    Raises:
      UserError: an unknown score; codes of a wrong shape or not finite.
    """
    if unknown := set(scores) - set(NAMES):
        raise UserError(f"score {min(unknown)!r} is unknown; choose from {', '.join(NAMES)}.")
    rows = [row for row in SCORES if row.name in scores]
    needs = {row.needs for row in rows}
    if "grid" in needs:
        codes_of = encode_grid(codes_of, grid, batch_size=batch_size).__getitem__

    def codes(name: str) -> Codes:
        return Codes(
            codes_of=codes_of,
            grid=grid,
            rng=_generator(seed, name),
            active=active,
            num_train=num_train,
            num_test=num_test,
            num_votes=num_votes,
            samples_per_vote=samples_per_vote,
            batch_size=batch_size,
        )

    records: dict[str, Callable] = {"images": codes, "grid": codes}
    if "points" in needs:
        points = _points(codes("points"), seed)
        records["points"] = lambda name: points
    return scores_lib.compute(rows, records)


def _generator(seed: int, name: str) -> np.random.Generator:
    """Randomness of a score, by its name alone: another score beside it changes nothing."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def _points(of: Codes, seed: int) -> Points:
    """The train and test points that all scores on single images share."""
    arrays = []
    for number in (of.num_train, of.num_test):
        arrays += sample_codes(
            of.codes_of, of.grid, of.rng, num_samples=number, batch_size=of.batch_size
        )
    return Points(*arrays, seed=seed)
