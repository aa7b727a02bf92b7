"""From a config to a trained, scored and explained run."""

import logging
import pathlib

import ml_collections

from vae_attn import config as config_lib
from vae_attn import factor_experiment
from vae_attn.data import registry
from vae_attn.evaluation import anomaly
from vae_attn.evaluation.explainer import Explainer
from vae_attn.reporting import report
from vae_attn.training import loop

_LOG = logging.getLogger("vae_attn")


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str) -> None:
    """Trains, evaluates, explains, or all of it.

    Args:
      config: see `vae_attn.config.default_config`.
      workdir: of the run; an existing one is gone on with.
      mode: `train`, `evaluate` (score the maps), `explain` (figures and page) or `all`.

    Raises:
      UserError: for whatever the user can mend.
    """
    if config.data.name == "dsprites":
        factor_experiment.run(config, workdir, mode=mode)
        return
    config_lib.validate(config)
    data = registry.load(config)
    config_lib.save_or_compare(config, workdir)
    _LOG.info("%s: %d normal images to train on, in %s", data.name, len(data.train), workdir)
    if mode in ("all", "train"):
        loop.train(config, workdir, data)
    if mode == "train":
        return
    state = loop.restore(config, workdir, which=config.evaluate.checkpoint)
    explainer = Explainer(
        loop.build_model(config),
        state.variables,
        data.train,
        projection_steps=config.attention.projection_steps,
        batch_size=config.evaluate.batch_size,
        latent_batch_size=config.attention.latent_batch_size or None,
    )
    if mode in ("all", "evaluate"):
        scores = anomaly.evaluate(config, explainer, data)
        table = anomaly.write(scores, workdir / "evaluation", title=data.name)
        _LOG.info("scores: %s", table)
    if mode in ("all", "explain"):
        page = report.write(config, workdir, explainer, data)
        _LOG.info("pictures and tables: %s", page)
