"""From a config to a trained, scored and explained run."""

import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vae_attn import compilation_cache, workdir_scores
from vae_attn import workdir as workdir_lib
from vae_attn.errors import UserError
from vae_attn.experiments import checkpoint_report, kinds, model_card, titles, validation
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.protocol import Experiment, Trained
from vae_attn.reporting import figures, page, tables
from vae_attn.training import distributed, loop, objectives, seeds, telemetry
from vae_attn.training.checkpoints import digest
from vae_attn.training.task import Data
from vae_attn.workdir import DataRecord, WorkdirLock

_LOG = logging.getLogger("vae_attn")


def run(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    mode: str,
    images: str | None = None,
    tiles: str | None = None,
) -> None:
    """Trains, evaluates, explains, or all of it; or exports.

    Where a config stands for several runs (`data.category` is a group of categories), each has its
    own folder in `workdir`, and `workdir/table.md` and `workdir/report/index.html` show all.

    Args:
      config: see `vae_attn.config.default_config`.
      workdir: of the run; resumes the one that is there.
      mode: `train`, `evaluate` (score the maps), `explain` (figures and page), `all` of these, or
        `export` (the maps as a file for others). Of several processes, which all come here, the
        main one evaluates, explains and exports.
      images: for `explain`: the user's image files, a folder of them or a pattern, which are
        explained in place of the data set (`own_images`).
      tiles: how those that are larger than the model's are explained, or None to resize them.

    Raises:
      preemption.Stopped: after SIGTERM or SIGINT, with a checkpoint saved.
      UserError: for any error the user can fix, such as a workdir that another command uses.
    """
    try:
        with WorkdirLock() as lock:
            validation.validate(config)
            compilation_cache.keep(config)
            kind = kinds.of(config)
            if mode == "export" or images is not None:
                _use(kind, config, workdir, images, tiles, lock)
            elif members := kind.members(config):
                _run_members(kind, config, members, workdir, mode, lock)
            else:
                _run_one(kind, config, workdir, mode, lock)
    except OSError as error:
        raise UserError(
            f"--workdir={workdir} or the data cannot be read or written ({error}): check the "
            "disk's space and the permissions, and run the same command again."
        ) from error


def _use(
    kind: type[Experiment],
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    images: str | None,
    tiles: str | None,
    lock: WorkdirLock,
) -> None:
    """What needs the trained run alone: explains the user's images, or exports without any."""
    act = kind.use(config, workdir, images=images, tiles=tiles)
    lock.take(workdir)
    if distributed.is_main():
        act()
    distributed.barrier("used")


def _run_members(
    kind: type[Experiment],
    config: ml_collections.ConfigDict,
    members: dict[str, ml_collections.ConfigDict],
    workdir: pathlib.Path,
    mode: str,
    lock: WorkdirLock,
) -> None:
    """Several runs, one after the other, and what is reported over all of them."""
    _check_all(kind, members)
    lock.take(workdir, *(workdir / name for name in members))
    workdir_lib.keep_group(config, workdir)
    names = {name: _run_one(kind, one, workdir / name, mode, lock) for name, one in members.items()}
    if distributed.is_main() and mode != "train":
        _LOG.info("all runs: %s", kind.report_members(config, workdir, names, mode))
    distributed.barrier("all members")  # who leaves waits for the others for half a minute only


def _check_all(kind: type[Experiment], members: dict[str, ml_collections.ConfigDict]) -> None:
    """Loads every member's data once, one at a time, before hours go into the first of them."""
    problems = []
    for one in members.values():
        try:
            kind.load(one)
        except UserError as error:
            problems.append(str(error))
    if problems:
        heading = f"{len(problems)} of {len(members)} data sets cannot be used; nothing was run:"
        raise UserError("\n".join([heading, *problems]))


def _run_one(
    kind: type[Experiment],
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    mode: str,
    lock: WorkdirLock,
) -> str:
    """One run; returns its data's name."""
    experiment = kind.load(config)
    data = experiment.data
    _check_model_fits(config, data)
    total_steps = loop.total_steps(config, len(data.train))
    record = DataRecord.of(data, str(config.data.dir))
    workdir_lib.begin(config, workdir, mode=mode, lock=lock, total_steps=total_steps, data=record)
    _LOG.info("%s: %s, in %s", data.name, experiment.counts(), workdir)
    for sentence in experiment.missing():
        _LOG.warning("%s", sentence)
    if mode in ("all", "train"):
        loop.train(config, workdir, data, probe=experiment.probe, draw=experiment.draw)
    states = loop.restore_seeds(config, workdir, mode=mode)
    trained = [
        Trained(one, folder, state.variables, int(state.step))
        for (one, folder), state in zip(seeds.runs(config, workdir), states, strict=False)
    ]
    if distributed.is_main():
        if chosen := experiment.choose(trained[0]):
            config = _with_attention(config, chosen)
            experiment = experiment.with_config(config)
            trained = [one._replace(config=_with_attention(one.config, chosen)) for one in trained]
        _evaluate_and_explain(experiment, config, workdir, trained, mode)
    distributed.barrier("evaluated")
    return data.name


def _with_attention(
    config: ml_collections.ConfigDict, chosen: Mapping[str, Any]
) -> ml_collections.ConfigDict:
    config = config.copy_and_resolve_references()
    config.attention.update(chosen)
    return config


def _check_model_fits(config: ml_collections.ConfigDict, data: Data) -> None:
    found, expected = data.image_shape, objectives.build_model(config).image_shape
    if found != expected:
        found, expected = (" x ".join(map(str, shape)) for shape in (found, expected))
        raise UserError(
            f"the images of data.name={config.data.name} are {found} (height, width, channels), "
            f"and model.name={config.model.name} takes {expected}: choose another model.name, "
            "data.image_size or data.channels."
        )


def _evaluate_and_explain(
    experiment: Experiment,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    trained: Sequence[Trained],
    mode: str,
) -> None:
    """Scores and explains each seed's trained model, as `mode` says."""
    scores = []
    for one in trained:  # prepared and scored in turn: what is known of one model serves both
        experiment.prepare(one)
        if mode in ("all", "evaluate"):
            scores.append(experiment.evaluate(one))
            _write_scores(experiment, one.config, one.workdir, scores[-1], [one])
    if mode in ("all", "evaluate"):
        if len(trained) > 1:
            _write_scores(experiment, config, workdir, scores_lib.over_seeds(scores), trained)
        if config.evaluate.checkpoint == "all":
            checkpoint_report.write(experiment, config, workdir)
    if mode in ("all", "explain"):
        page_path = _report(experiment, config, workdir, trained)
        _LOG.info("pictures and tables: %s", page_path)


def _write_scores(
    experiment: Experiment,
    config,
    workdir: pathlib.Path,
    scores: dict[str, float],
    trained: Sequence[Trained],
) -> None:
    """TensorBoard's scores, `evaluation/metrics.json` and `table.md`, and `card.md`."""
    steps = [one.step for one in trained]
    telemetry.write_scores(workdir, {max(steps): experiment.main_scores(config, scores)})
    scored = workdir_scores.Scored.of(steps, _digests(trained), config)
    workdir_scores.write(workdir, scores, scored)
    at = ", ".join(map(str, dict.fromkeys(steps)))
    title = f"{titles.of_seeds(config, experiment.data.name)}, step {at}"
    path = workdir / workdir_scores.EVALUATION / "table.md"
    made = experiment.tables(scores, config)
    _LOG.info("scores: %s", tables.write_markdown(made, path, title=title))
    model_card.write(experiment, config, workdir, scores, at)


def _digests(trained: Sequence[Trained]) -> list[str]:
    return [digest(one.variables) for one in trained]


def _report(
    experiment: Experiment, config, workdir: pathlib.Path, trained: Sequence[Trained]
) -> pathlib.Path:
    """Writes `figures/` and `report/index.html`."""
    found = workdir_scores.of_run(workdir, _digests(trained))
    content = experiment.content(trained[0], found.scores, workdir)
    summary = content.summary
    if found.missing:
        _LOG.warning("no scores are shown: %s", found.missing)
        summary += f" No scores: {found.missing}."
    drawn = dict(content.drawn)
    if metrics := telemetry.read_metrics(workdir):
        caption = experiment.curves_caption
        caption += titles.all_seeds(config, "the mean, and each of them pale")
        figure = figures.curves(metrics, experiment.panels, y_label=experiment.y_label)
        drawn["training"] = (figure, "Training", caption)
    drawn |= checkpoint_report.drawn(config, workdir)
    scored = experiment.tables(found.scores, found.config(config)) if found.scores else []
    return page.write(
        config,
        workdir,
        title=experiment.data.name,
        summary=summary,
        drawn=drawn,
        tables=[*scored, *checkpoint_report.shown_tables(workdir)],
        facts=content.facts,
        explorer=content.explorer,
        plots=content.plots,
    )
