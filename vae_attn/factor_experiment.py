"""From a config to a VAE trained and scored on ground-truth factors, and shown."""

import logging
import pathlib

import jax
import ml_collections
from jaxtyping import PyTree

from vae_attn import config as config_lib
from vae_attn.data import dsprites
from vae_attn.evaluation import representation
from vae_attn.evaluation.calibration import variant_of
from vae_attn.evaluation.explainer import Explainer
from vae_attn.reporting import factor_report
from vae_attn.training import distributed, loop

_LOG = logging.getLogger("vae_attn")
_EXPLAINED_IMAGES = 2048
_VALIDATION_IMAGES = 256


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str) -> None:
    """Trains, evaluates, explains, or all of it; arguments as in `experiment.run`.

    Args:
      config: one with `data.name=dsprites`.
      workdir: of the run; an existing one is gone on with.
      mode: `train`, `evaluate` (score the latents), `explain` (figures and page) or `all`.

    Raises:
      UserError: for whatever the user can mend.
    """
    config_lib.validate(config)
    data = dsprites.load_dsprites(
        config.data.dir or None, source=config.data.source, grid=dsprites.GRID
    )
    config_lib.save_or_compare(config, workdir)
    _LOG.info("%s: %d images to train on, in %s", data.name, len(data), workdir)
    model = loop.build_model(config)
    learned = representation.Representation(model, data, batch_size=config.evaluate.batch_size)
    if mode in ("all", "train"):
        loop.train(
            config,
            workdir,
            data,
            probe=lambda variables: learned.quick_score(variables, seed=config.seed),
        )
    if mode == "train":
        return
    variables = loop.restore(config, workdir, which=config.evaluate.checkpoint).variables
    if distributed.is_main():
        _evaluate_and_explain(config, workdir, data, learned, variables, mode)
    distributed.barrier("evaluated")


def _evaluate_and_explain(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    data: dsprites.DSprites,
    learned: representation.Representation,
    variables: PyTree,
    mode: str,
) -> None:
    if mode in ("all", "evaluate"):
        _LOG.info("scores: encoding %d images", len(data))
        scores = learned.scores(variables, config)
        table = representation.write(scores, workdir / "evaluation", title=data.name)
        _LOG.info("scores: %s", table)
    if mode in ("all", "explain"):
        images = factor_report.pixels(data.sample(_EXPLAINED_IMAGES))
        explainer = Explainer(
            loop.build_model(config),
            jax.device_get(variables),
            images,
            images[:_VALIDATION_IMAGES],
            variant=variant_of(config.attention),
            projection_steps=config.attention.projection_steps,
            batch_size=config.evaluate.batch_size,
            latent_batch_size=config.attention.latent_batch_size or None,
        )
        page = factor_report.write(config, workdir, explainer, data)
        _LOG.info("pictures and tables: %s", page)
