"""A run's card for people: its data, config, scores beside others', true maps and limits."""

import importlib.metadata
import json
import pathlib
from collections.abc import Mapping

import jax
import ml_collections

import vae_attn
from vae_attn.config import default_config, flat
from vae_attn.experiments import scores as scores_lib
from vae_attn.experiments.protocol import Experiment
from vae_attn.reporting import tables
from vae_attn.reporting.tables import Table
from vae_attn.workdir import DataRecord

CARD = "card.md"  # in the workdir, and in its `export/`


def write(
    experiment: Experiment,
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    scores: Mapping[str, float],
    steps: str,
) -> pathlib.Path:
    """Writes `card.md`; returns its path.

    Args:
      experiment: of the run.
      config: the run's, or that of one of its seeds.
      workdir: likewise.
      scores: all of them.
      steps: of the checkpoints that were scored, one for each seed, in words.
    """
    limits = [[one] for one in experiment.limits(workdir)]
    made = [
        _made(DataRecord.read(workdir), config, steps),
        _config(config),
        _scores(experiment, config, scores),
        *experiment.card_tables(scores, config),
        Table("Limits", [["what to keep in mind"], *limits], ""),
    ]
    shown = [one for one in made if len(one.rows) > 1]
    title = f"Model card: {experiment.data.name}"
    return tables.write_markdown(shown, workdir / CARD, title=title)


def _made(data: DataRecord, config: ml_collections.ConfigDict, steps: str) -> Table:
    rows = [
        ["", "value"],
        ["data", data.name],
        ["images to train on", str(data.train)],
        ["images held out", str(data.validation)],
        ["fingerprint of both", data.fingerprint],
        ["model", f"{config.model.name}, {config.model.latents} latents"],
        ["checkpoint", f"step {steps}"],
        ["made with", f"vae_attn {vae_attn.__version__}, jax {jax.__version__}, "
                      f"flax {importlib.metadata.version('flax')}"],
    ]  # fmt: skip
    return Table("Data and model", [list(map(_cell, row)) for row in rows], "")


def _config(config: ml_collections.ConfigDict) -> Table:
    """The keys that are not as `vae_attn/config.py` has them."""
    own, default = (flat(json.loads(one.to_json())) for one in (config, default_config()))
    rows = [
        [key, _cell(json.dumps(value))]
        for key, value in own.items()
        if value != default.get(key) and key != "data.cache_dir"
    ]
    return Table("Config", [["key", "value"], *rows], "All other keys have their defaults.")


def _scores(
    experiment: Experiment, config: ml_collections.ConfigDict, scores: Mapping[str, float]
) -> Table:
    """The main scores, with their intervals."""
    rows = []
    for name in experiment.main_scores(config, scores):
        score, _, of = name.partition("/")
        metric = f"{of}/{score}" if f"{of}/{score}" in scores else name
        rows.append([_cell(name), scores_lib.cell(scores, metric, interval=True)])
    note = "In brackets 95% bootstrap intervals over test images, where there are any; they do not "
    note += "cover other seeds. evaluation/table.md has all scores."
    return Table("Main scores", [["score", "value"], *rows], note)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
