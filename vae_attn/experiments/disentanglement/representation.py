"""Scores what a VAE learned of ground-truth factors: its latents' disentanglement."""

import functools
from collections.abc import Callable, Mapping
from typing import Any as PyTree

import ml_collections
import numpy as np
from jaxtyping import Array, Float, Int

from vae_attn import backend
from vae_attn.batching import map_batches
from vae_attn.config import require
from vae_attn.data.factor_grid import FactorData
from vae_attn.experiments import faithful
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.disentanglement import diagnosis, factor_scores
from vae_attn.experiments.disentanglement.scores import (
    AD_FACTOR_VAE,
    FACTOR_VAE,
    SCORES,
    TRUE,
    disentanglement_scores,
)
from vae_attn.experiments.latent_use import latent_kl
from vae_attn.models.model import Model
from vae_attn.reporting.tables import Table
from vae_attn.training.steps import AtMean, at_mean

QUICK_SCORE = "factor_vae_quick"
_SAMPLE = 2048  # images that give mean losses, and the latents' scale in the quick score
_QUICK_VOTES, _QUICK_IMAGES = 400, 50

# A row of the table that no score of ours can stand beside.
_SIX_FACTORS = ("factor_vae, six factors", {FACTOR_VAE: ".805", AD_FACTOR_VAE: ".854"})

_NOTE = (
    "FactorVAE's and AD-FactorVAE's columns: the paper's figures, recalled from memory; in the row "
    "of six factors those of a public reproduction (300,000 steps, three seeds, its best lambda), "
    "which counted the constant colour as a factor and so cannot be compared with ours. "
    "Reconstruction and KL in nats per image, at z = mean; active_latents have a mean KL above "
    "0.01 nats. gaussian_total_correlation, in nats: what the codes' covariance accounts for; 0 is "
    "uncorrelated."
)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what scoring a run on factors reads of its config.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    require(config, "evaluate.points", lambda v: v >= 100, "100 or more")
    known = f"0 with data.name={config.data.name}, where no image is abnormal"
    require(config, "learned.steps", lambda v: v == 0, known)
    known = f"False with data.name={config.data.name}, where no image is abnormal"
    require(config, "evaluate.select", lambda v: not v, known)


@functools.partial(backend.jit, static_argnames=("model", "pixels"))
def _encode(model: Model, pixels: Callable, variables: PyTree, stored: Array) -> Array:
    return model.apply(variables, pixels(stored), method="encode")[0]


@functools.partial(backend.jit, static_argnames=("model", "pixels"))
def _at_mean(model: Model, pixels: Callable, variables: PyTree, stored: Array) -> AtMean:
    return at_mean(model, variables, pixels(stored))


class Representation:
    """The codes that a VAE gives the images of a factor grid.

    Attributes:
      data: the images.
    """

    def __init__(self, model: Model, data: FactorData, *, batch_size: int) -> None:
        """Compiles nothing yet; the variables come with each call, so that it compiles once.

        Args:
          model: the VAE.
          data: the images.
          batch_size: images at once.
        """
        self.data = data
        self._batch_size = batch_size
        self._encode = functools.partial(_encode, model, data.pixels)
        self._at_mean = functools.partial(_at_mean, model, data.pixels)

    def codes_of(
        self, variables: PyTree
    ) -> Callable[[Int[np.ndarray, "n"]], Float[Array, "n latents"]]:
        """`codes_of(indices)`: the latents' means, as the scores ask for them."""
        return lambda indices: self._encode(variables, self.data.train[indices])

    def sample(self, variables: PyTree) -> AtMean:
        """What the VAE makes of a sample of images, always the same."""
        return map_batches(
            lambda stored: self._at_mean(variables, stored),
            self.data.sample(_SAMPLE),
            self._batch_size,
        )

    def follow(self, variables: PyTree, *, seed: int) -> dict[str, float]:
        """What is followed at every checkpoint: the quick score, and `diagnosis.of_codes`.

        The score is Kim & Mnih's, from half the votes and a quarter of the images.
        """
        found = self.sample(variables)
        active = factor_scores.active_latents(kl=latent_kl(found.mean, found.logvar))
        score = factor_scores.factor_vae_score(
            codes_of=self.codes_of(variables),
            grid=self.data.grid,
            rng=np.random.default_rng(seed),
            active=active,
            num_votes=_QUICK_VOTES,
            samples_per_vote=_QUICK_IMAGES,
            num_scale_samples=_SAMPLE,
            batch_size=self._batch_size,
        )
        followed = {QUICK_SCORE: score, diagnosis.ACTIVE: float(active.sum())}
        return followed | diagnosis.of_codes(mean=found.mean, logvar=found.logvar)

    def scores(self, variables: PyTree, config: ml_collections.ConfigDict) -> dict[str, float]:
        """All scores of `disentanglement_scores`, and beside them what the VAE pays for them.

        Args:
          variables: of the trained VAE.
          config: its `seed` and `evaluate.points` are used.

        Returns:
          The scores; `reconstruction` and `kl`, nats per image; `active_latents`, their number;
          the Gaussian part of the codes' total correlation, in nats.
        """
        found = self.sample(variables)
        kl = latent_kl(found.mean, found.logvar)
        active = factor_scores.active_latents(kl=kl)
        scores = disentanglement_scores(
            codes_of=self.codes_of(variables),
            grid=self.data.grid,
            seed=config.seed,
            active=active,
            num_train=config.evaluate.points,
            num_test=config.evaluate.points // 2,
            batch_size=self._batch_size,
        )
        paid = {"reconstruction": float(found.reconstruction.mean()), "kl": float(kl.sum())}
        covariance = diagnosis.covariance(mean=found.mean, logvar=found.logvar)
        correlation = diagnosis.gaussian_total_correlation(covariance=covariance)
        counted = {diagnosis.ACTIVE: float(active.sum()), diagnosis.GAUSSIAN: correlation}
        return scores | paid | counted


def main_scores(config: ml_collections.ConfigDict, scores: Mapping[str, float]) -> dict[str, float]:
    """The few scores by which runs and checkpoints are compared, all better where higher."""
    del config  # the same for all
    return {row.name: scores[row.name] for row in SCORES if row.references and row.name in scores}


def table(scores: Mapping[str, float]) -> Table:
    """A row per score, beside the values of others."""
    columns = (TRUE, FACTOR_VAE, AD_FACTOR_VAE)
    references = {row.name: row.references for row in SCORES}
    names = [name for name in faithful.others(scores) if not name.endswith(scores_lib.STD)]
    rows = [
        [
            name,
            scores_lib.cell(scores, name),
            *(references.get(name, {}).get(c, "") for c in columns),
        ]
        for name in names
    ]
    name, of_others = _SIX_FACTORS
    rows.insert(1, [name, "", *(of_others.get(c, "") for c in columns)])
    notes = [row.note for row in SCORES if row.note and row.name in scores]
    return Table("Scores", [["score", "this run", *columns], *rows], " ".join([*notes, _NOTE]))
