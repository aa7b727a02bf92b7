"""From a config to a VAE trained and scored on ground-truth factors, and shown."""

import logging
import pathlib
from collections.abc import Sequence

import jax
import ml_collections
from jaxtyping import PyTree

from vae_attn import workdir as runs
from vae_attn.data import dsprites
from vae_attn.experiments import checkpoint_report, snapshots, validation
from vae_attn.experiments.anomaly import summary
from vae_attn.experiments.anomaly.calibrating import calibrate
from vae_attn.experiments.anomaly.calibration import variant_of
from vae_attn.experiments.disentanglement import report as factor_report
from vae_attn.experiments.disentanglement import representation
from vae_attn.training import distributed, loop, seeds, telemetry
from vae_attn.workdir_lock import WorkdirLock

_LOG = logging.getLogger("vae_attn")
_EXPLAINED_IMAGES = 2048
_VALIDATION_IMAGES = 256


def run(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, mode: str, lock: WorkdirLock
) -> None:
    """Trains, evaluates, explains, or all of it; arguments as in `experiment.run`.

    Args:
      config: one with `data.name=dsprites`.
      workdir: of the run; an existing one is gone on with.
      mode: `train`, `evaluate` (score the latents), `explain` (figures and page) or `all`.
      lock: takes the workdir.

    Raises:
      UserError: for whatever the user can mend.
    """
    validation.validate(config)
    data = dsprites.load_dsprites(
        config.data.dir or None, source=config.data.source, grid=dsprites.GRID
    )
    total_steps = loop.total_steps(config, len(data.train))
    runs.begin(config, workdir, mode=mode, lock=lock, total_steps=total_steps)
    _LOG.info("%s: %d images to train on, in %s", data.name, len(data), workdir)
    model = loop.build_model(config)
    learned = representation.Representation(model, data, batch_size=config.evaluate.batch_size)
    if mode in ("all", "train"):
        draw = None
        if config.report.tensorboard_images:
            draw = snapshots.TraversalSnapshots(config, data)
        loop.train(config, workdir, data, probe=learned.quick_score, draw=draw)
    if mode == "train":
        return
    trained = loop.restore_seeds(config, workdir, mode=mode)
    if distributed.is_main():
        _evaluate_and_explain(config, workdir, trained, learned, mode)
    distributed.barrier("evaluated")


def _evaluate_and_explain(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    trained: Sequence[loop.State],
    learned: representation.Representation,
    mode: str,
) -> None:
    """Scores each seed's trained model, and explains the first's, as `mode` says."""
    data = learned.data
    if mode in ("all", "evaluate"):
        each = zip(seeds.runs(config, workdir), trained, strict=True)
        scores = [_evaluate(*run, state, learned) for run, state in each]
        if config.num_seeds > 1:
            step = max(int(state.step) for state in trained)
            _write_scores(config, workdir, summary.over_seeds(scores), data, step)
        if config.evaluate.checkpoint == "all":
            _score_checkpoints(config, workdir, learned)
    if mode in ("all", "explain"):
        images = factor_report.pixels(data.sample(_EXPLAINED_IMAGES))
        explainer = calibrate(
            loop.build_model(config),
            jax.device_get(trained[0].variables),
            images,
            images[:_VALIDATION_IMAGES],
            variant=variant_of(config.attention),
            projection_steps=config.attention.projection_steps,
            batch_size=config.evaluate.batch_size,
            latent_batch_size=config.attention.latent_batch_size or None,
        )
        page = factor_report.write(config, workdir, explainer, data)
        _LOG.info("pictures and tables: %s", page)


def _score_checkpoints(config, workdir: pathlib.Path, learned) -> None:
    """The main scores of every kept checkpoint."""

    def score_of(one, variables: PyTree) -> dict[str, float]:
        return representation.main_scores(learned.scores(variables, one))

    name, num_images = learned.data.name, len(learned.data)
    checkpoint_report.write(config, workdir, score_of, name, num_images=num_images)


def _evaluate(
    config, workdir: pathlib.Path, state: loop.State, learned: representation.Representation
) -> dict[str, float]:
    """Scores one seed's run."""
    _LOG.info("scores: encoding %d images", len(learned.data))
    scores = learned.scores(state.variables, config)
    _write_scores(config, workdir, scores, learned.data, int(state.step))
    return scores


def _write_scores(config, workdir: pathlib.Path, scores, data, step: int) -> None:
    telemetry.write_scores(workdir, {step: representation.main_scores(scores)})
    title = summary.title(config, data.name)
    _LOG.info("scores: %s", representation.write(scores, workdir / "evaluation", title=title))
