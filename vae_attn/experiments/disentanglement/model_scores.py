"""All that is measured of a model to compare it with others, with and without labels."""

from typing import Any as PyTree

import ml_collections

from vae_attn.data.factor_grid import FactorData
from vae_attn.experiments import faithful
from vae_attn.experiments.disentanglement import diagnosis, factor_scores, likeness
from vae_attn.experiments.disentanglement.representation import Representation
from vae_attn.experiments.disentanglement.scores import disentanglement_scores
from vae_attn.experiments.latent_use import latent_kl
from vae_attn.experiments.maps import Mapper
from vae_attn.models.model import Model

# Those that look at some 100,000 images, not at the whole grid.
SCORES = ("factor_vae", "mig", "dci", "infomec")
_LIKENESS_IMAGES = 64
_TRUTH = ("correlation", "which_latent")  # of the measures of faithfulness


def measure(
    config: ml_collections.ConfigDict,
    variables: PyTree,
    *,
    model: Model,
    data: FactorData,
    learned: Representation,
) -> dict[str, float]:
    """Scores of a model, what it pays for them, and measures that need no labels.

    Args:
      config: the run's; its `seed`, `factor.ad_layer` and `evaluate` are used.
      variables: of the trained VAE.
      model: the VAE.
      data: what it learned from.
      learned: of the same model and data.

    Returns:
      `SCORES`; reconstruction and KL in nats; active latents, the smallest and the largest of the
      latents' deviations, the Gaussian part of the total correlation in nats; without labels:
      `likeness/<form>` and, how true the published maps are of their latents, `faithfulness/...`.
    """
    found = learned.sample(variables)
    kl = latent_kl(found.mean, found.logvar)
    active = factor_scores.active_latents(kl=kl)
    followed = diagnosis.of_codes(mean=found.mean, logvar=found.logvar)
    deviations = [v for k, v in followed.items() if k.startswith(diagnosis.DEVIATION)]
    scores = disentanglement_scores(
        codes_of=learned.codes_of(variables),
        grid=data.grid,
        seed=config.seed,
        active=active,
        scores=SCORES,
        num_train=config.evaluate.points,
        num_test=config.evaluate.points // 2,
        batch_size=config.evaluate.batch_size,
    )
    scores |= likeness.likeness(
        model,
        variables,
        data,
        active=active,
        layer=config.factor.ad_layer,
        num_images=_LIKENESS_IMAGES,
        seed=config.seed,
    )
    return scores | {
        **_truth(config, variables, model, data),
        "reconstruction": float(found.reconstruction.mean()),
        "kl": float(kl.sum()),
        diagnosis.ACTIVE: float(active.sum()),
        diagnosis.GAUSSIAN: followed[diagnosis.GAUSSIAN],
        "smallest_deviation": min(deviations),
        "largest_deviation": max(deviations),
    }


def _truth(config, variables: PyTree, model: Model, data: FactorData) -> dict[str, float]:
    """How true the published maps are of their latents."""
    mapper = Mapper(model=model, variables=variables, batch_size=config.evaluate.batch_size)
    images = data.as_uint8(data.sample(max(config.evaluate.faithful_images, 1), seed=config.seed))
    layer = config.factor.ad_layer
    found = faithful.evaluate(config, mapper, images, images, layers=(layer,))
    wanted = [f"{faithful.PREFIX}paper/{layer}/{name}" for name in _TRUTH]
    return {name: found[name] for name in wanted if name in found}
