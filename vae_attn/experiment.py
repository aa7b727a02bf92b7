"""From a config to a trained, scored and explained run."""

import logging
import pathlib

import ml_collections

from vae_attn import config as config_lib
from vae_attn import factor_experiment
from vae_attn.data import mvtec_ad, registry
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError
from vae_attn.evaluation import anomaly, published, summary, tables
from vae_attn.evaluation.calibration import Calibration, variant_of
from vae_attn.evaluation.explainer import Explainer
from vae_attn.reporting import report
from vae_attn.training import distributed, loop

_LOG = logging.getLogger("vae_attn")


def run(config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str) -> None:
    """Trains, evaluates, explains, or all of it.

    Where `data.category` is a group of categories, each has its own run in `workdir/<category>`,
    and `workdir/table.md` shows all of them.

    Args:
      config: see `vae_attn.config.default_config`.
      workdir: of the run; an existing one is gone on with.
      mode: `train`, `evaluate` (score the maps), `explain` (figures and page) or `all`. Of
        several processes, which all come here, the main one evaluates and explains.

    Raises:
      preemption.Stopped: after SIGTERM or SIGINT, with a checkpoint saved.
      UserError: for whatever the user can mend.
    """
    try:
        _run(config, workdir, mode)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} or the data cannot be read or written ({error}): see to the "
            "disk's space and the permissions, and run the same command again."
        ) from error


def _run(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str) -> None:
    if config.data.name == "dsprites":
        factor_experiment.run(config, workdir, mode=mode)
        return
    config_lib.validate(config)
    if config.data.category not in mvtec_ad.GROUPS:
        _run_one(config, workdir, mode)
        return
    group = config.data.category
    categories = mvtec_ad.present(config.data.dir, group)
    if missing := [c for c in mvtec_ad.GROUPS[group] if c not in categories]:
        _LOG.warning("%s lacks, and the runs leave out: %s", config.data.dir, ", ".join(missing))
    names = {}
    for category in categories:
        one = config.copy_and_resolve_references()
        config_lib.set_category(one, category)
        names[category] = _run_one(one, workdir / category, mode)
    if mode in ("all", "evaluate") and distributed.is_main():
        _LOG.info("all categories: %s", summary.write(config, workdir, names))


def _run_one(config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str) -> str:
    """One run; returns its data set's name."""
    data = registry.load(config)
    _check_model_fits(config, data)
    if mode in ("evaluate", "explain") and not (workdir / "config.json").exists():
        raise UserError(f"{workdir} holds no run: train it first (--mode=train).")
    config_lib.save_or_compare(config, workdir)
    _LOG.info("%s: %d normal images to train on, in %s", data.name, len(data.train), workdir)
    if mode in ("all", "train"):
        loop.train(config, workdir, data)
    if mode == "train":
        return data.name
    state = loop.restore(config, workdir, which=config.evaluate.checkpoint)
    if distributed.is_main():
        _evaluate_and_explain(config, workdir, data, state, mode)
    distributed.barrier("evaluated")
    return data.name


def _evaluate_and_explain(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    data: AnomalyData,
    state: loop.State,
    mode: str,
) -> None:
    variant = variant_of(config.attention)
    path = workdir / "calibration.npz"
    of = f"step {state.step}: {variant}, projection_steps={config.attention.projection_steps}"
    kept = Calibration.load(path, of=of)
    explainer = Explainer(
        loop.build_model(config),
        state.variables,
        data.train,
        anomaly.sample_validation(data),
        variant=variant,
        projection_steps=config.attention.projection_steps,
        batch_size=config.evaluate.batch_size,
        latent_batch_size=config.attention.latent_batch_size or None,
        calibration=kept,
    )
    if kept is None:
        explainer.calibration.save(path, of=of)
    if mode in ("all", "evaluate"):
        scores = anomaly.evaluate(config, explainer, data)
        table = tables.write(
            scores,
            workdir / "evaluation",
            title=data.name,
            published=published.lines(config.data.name, config.data.category),
        )
        _LOG.info("scores: %s", table)
    if mode in ("all", "explain"):
        page = report.write(config, workdir, explainer, data)
        _LOG.info("pictures and tables: %s", page)


def _check_model_fits(config: ml_collections.ConfigDict, data: AnomalyData) -> None:
    found, expected = data.train.shape[1:], loop.build_model(config).architecture.image_shape
    if found != expected:
        found, expected = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise UserError(
            f"the images of data.name={config.data.name} are {found} (height, width, channels), "
            f"and model.name={config.model.name} takes {expected}: choose another model.name, "
            "data.image_size or, for data.name=folder, data.channels."
        )
