"""From a config to a trained, scored and explained run."""

import logging
import pathlib
from collections.abc import Sequence

import ml_collections
from jaxtyping import PyTree

from vae_attn import workdir as runs
from vae_attn.data import mvtec_ad
from vae_attn.data import sources as registry
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError
from vae_attn.experiments import checkpoint_report, snapshots, validation
from vae_attn.experiments.anomaly import evaluation as anomaly
from vae_attn.experiments.anomaly import export, group_report, loading, own_images, report, summary
from vae_attn.experiments.anomaly.calibrating import calibrate
from vae_attn.experiments.anomaly.calibration import Calibration, variant_of
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.experiments.disentanglement import experiment as factor_experiment
from vae_attn.training import distributed, loop, seeds, telemetry
from vae_attn.training.checkpoints import digest
from vae_attn.training.state import TrainState
from vae_attn.workdir_lock import WorkdirLock

_LOG = logging.getLogger("vae_attn")


def run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    mode: str,
    images: str | None = None,
) -> None:
    """Trains, evaluates, explains, or all of it; or exports.

    Where `data.category` is a group of categories, each has its own run in `workdir/<category>`,
    and `workdir/table.md` and `workdir/report/index.html` show all of them.

    Args:
      config: see `vae_attn.config.default_config`.
      workdir: of the run; an existing one is gone on with.
      mode: `train`, `evaluate` (score the maps), `explain` (figures and page), `all` of these, or
        `export` (the maps as a file for others). Of several processes, which all come here, the
        main one evaluates, explains and exports.
      images: for `explain`: image files of the user's, a folder of them or a pattern, which are
        explained in place of the data set (`reporting.own_images`).

    Raises:
      preemption.Stopped: after SIGTERM or SIGINT, with a checkpoint saved.
      UserError: for whatever the user can mend, such as a workdir that another command works in.
    """
    try:
        with WorkdirLock() as lock:
            if mode == "export" or images is not None:
                _use(config, workdir, images, lock)
            else:
                _run(config, workdir, mode, lock)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} or the data cannot be read or written ({error}): see to the "
            "disk's space and the permissions, and run the same command again."
        ) from error


def _use(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, images: str | None, lock: WorkdirLock
) -> None:
    """What needs the trained run alone: explains the user's images, or exports without any."""
    paths = own_images.find(images) if images is not None else []
    explainer = loading.load_with(config, workdir)
    lock.take(workdir)
    if distributed.is_main():
        if images is None:
            _LOG.info("exported: %s", export.write(config, workdir, explainer))
        else:
            own_images.explain(explainer, paths, workdir, layer=config.attention.layer)
    distributed.barrier("used")


def _run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str, lock: WorkdirLock
) -> None:
    if config.data.name == "dsprites":
        factor_experiment.run(config, workdir, mode=mode, lock=lock)
        return
    validation.validate(config)
    if config.data.category not in mvtec_ad.GROUPS:
        _run_one(config, workdir, mode, lock)
        return
    group = config.data.category
    categories = mvtec_ad.present(config.data.dir, group)
    if missing := [c for c in mvtec_ad.GROUPS[group] if c not in categories]:
        _LOG.warning("%s lacks, and the runs leave out: %s", config.data.dir, ", ".join(missing))
    configs = {category: config.copy_and_resolve_references() for category in categories}
    for category, one in configs.items():
        one.data.category = category
        keep_pose = one.data.keep_pose
        one.data.update(mvtec_ad.augmentation(category, keep_pose=keep_pose))
    _check_all(configs)
    lock.take(workdir, *(workdir / category for category in configs))
    runs.keep_group(config, workdir)
    names = {c: _run_one(one, workdir / c, mode, lock) for c, one in configs.items()}
    if distributed.is_main() and mode in ("all", "evaluate"):
        _LOG.info("all categories: %s", summary.write_group(config, workdir, names))
    if distributed.is_main() and mode in ("all", "explain"):
        _LOG.info("all categories: %s", group_report.write(config, workdir, names))
    distributed.barrier("all categories")  # who leaves waits for the others for half a minute only


def _check_all(configs: dict[str, ml_collections.ConfigDict]) -> None:
    """Loads every category once, one at a time, before hours go into the first of them."""
    problems = []
    for one in configs.values():
        try:
            registry.load(one)
        except UserError as error:
            problems.append(str(error))
    if problems:
        heading = f"{len(problems)} of {len(configs)} categories cannot be used; nothing was run:"
        raise UserError("\n".join([heading, *problems]))


def _run_one(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, mode: str, lock: WorkdirLock
) -> str:
    """One run; returns its data set's name."""
    data = registry.load(config)
    _check_model_fits(config, data)
    total_steps = loop.total_steps(config, len(data.train))
    runs.begin(config, workdir, mode=mode, lock=lock, total_steps=total_steps)
    _LOG.info("%s: %d normal images to train on, in %s", data.name, len(data.train), workdir)
    if mode in ("all", "train"):
        draw = snapshots.MapSnapshots(config, data) if config.report.tensorboard_images else None
        loop.train(config, workdir, data, draw=draw)
    trained = loop.restore_seeds(config, workdir, mode=mode)
    if distributed.is_main():
        _evaluate_and_explain(config, workdir, trained, data, mode)
    distributed.barrier("evaluated")
    return data.name


def _evaluate_and_explain(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    trained: Sequence[TrainState],
    data: AnomalyData,
    mode: str,
) -> None:
    """Calibrates each seed's trained model, and scores and explains what `mode` says."""
    of_seeds = seeds.runs(config, workdir)
    explainer = _explainer(*of_seeds[0], trained[0].variables, data)
    others = list(zip(of_seeds[1:], trained[1:], strict=mode != "explain"))
    if mode == "train":  # the first's calibration is measured, so the others' too
        for run, state in others:
            _explainer(*run, state.variables, data)
    if mode in ("all", "evaluate"):
        steps = [int(state.step) for state in trained]
        scores = [_evaluate(*of_seeds[0], explainer, data, steps[0])]
        for (run, state), step in zip(others, steps[1:], strict=True):
            scores.append(_evaluate(*run, _explainer(*run, state.variables, data), data, step))
        if others:
            _write_scores(config, workdir, summary.over_seeds(scores), data, max(steps))
        if config.evaluate.checkpoint == "all":
            _score_checkpoints(config, workdir, data)
    if mode in ("all", "explain"):
        page = report.write(config, workdir, explainer, data)
        _LOG.info("pictures and tables: %s", page)


def _evaluate(config, workdir: pathlib.Path, explainer: Explainer, data: AnomalyData, step: int):
    """Scores one seed's run."""
    scores, curves = anomaly.evaluate(config, explainer, data)
    _write_scores(config, workdir, scores, data, step)
    curves.save(workdir / "evaluation" / "curves.json")
    return scores


def _write_scores(config, workdir: pathlib.Path, scores, data: AnomalyData, step: int) -> None:
    telemetry.write_scores(workdir, {step: summary.main_scores(config, scores)})
    _LOG.info("scores: %s", summary.write(config, workdir / "evaluation", scores, data))


def _score_checkpoints(config, workdir: pathlib.Path, data: AnomalyData) -> None:
    """The main scores of every kept checkpoint, each with a calibration of its own."""
    config = config.copy_and_resolve_references()
    # Of the other styles no score is shown; the run's own is scored in any case.
    config.evaluate.styles = ("paper",)

    def score_of(one, variables: PyTree) -> dict[str, float]:
        scores, _ = anomaly.evaluate(one, _calibrated(one, variables, data), data)
        return summary.main_scores(one, scores)

    checkpoint_report.write(config, workdir, score_of, data.name, num_images=len(data.train))


def _explainer(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    variables: PyTree,
    data: AnomalyData,
) -> Explainer:
    """The trained model, with its calibration kept beside its checkpoints."""
    variant, steps = variant_of(config.attention), config.attention.projection_steps
    path = workdir / loading.CALIBRATION
    if (kept := Calibration.load(path)) is not None:
        of = (kept.parameters, kept.variant, kept.projection_steps)
        if of == (digest(variables), variant, steps):
            return Explainer(loop.build_model(config), variables, kept, **_batches(config))
    explainer = _calibrated(config, variables, data)
    explainer.calibration.save(path)
    return explainer


def _calibrated(config, variables: PyTree, data: AnomalyData) -> Explainer:
    return calibrate(
        loop.build_model(config),
        variables,
        data.train,
        anomaly.sample_validation(data),
        variant=variant_of(config.attention),
        projection_steps=config.attention.projection_steps,
        **_batches(config),
    )


def _batches(config) -> dict[str, int | None]:
    return {
        "batch_size": config.evaluate.batch_size,
        "latent_batch_size": config.attention.latent_batch_size or None,
    }


def _check_model_fits(config: ml_collections.ConfigDict, data: AnomalyData) -> None:
    found, expected = data.train.shape[1:], loop.build_model(config).architecture.image_shape
    if found != expected:
        found, expected = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise UserError(
            f"the images of data.name={config.data.name} are {found} (height, width, channels), "
            f"and model.name={config.model.name} takes {expected}: choose another model.name, "
            "data.image_size or, for data.name=folder, data.channels."
        )
