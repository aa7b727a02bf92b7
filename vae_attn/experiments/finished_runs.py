"""Finds runs and reads what they left: config, scores, curves."""

import dataclasses
import glob
import json
import logging
import os
import pathlib
from collections.abc import Sequence

import ml_collections

from vae_attn import workdir_scores
from vae_attn.config import flat
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import kinds, validation
from vae_attn.experiments import scores as scores_lib
from vae_attn.training.telemetry import read_metrics
from vae_attn.workdir import CONFIG

_LOG = logging.getLogger("vae_attn")

# A sweep's folder holds runs, a run of several categories holds one of each, that its seeds.
_DEPTH = 3
SCORED_ON = ("evaluate.mask_size", "evaluate.max_images")
SEED_KEYS = ("seed", "num_seeds")

Curves = dict[str, tuple[list[int], list[float]]]


@dataclasses.dataclass(frozen=True)
class Run:
    """A run of one seed.

    Attributes:
      name: its folder's path, from the folder that all runs share.
      folder: the run's.
      keys: its config, flat; with the settings with which it was last evaluated.
      scores: its main ones, all better where higher; empty where it was not evaluated.
      missing: why scores that are there are not among them, without a full stop; "" otherwise.
      curves: of its training, as in `telemetry.read_metrics`.
    """

    name: str
    folder: pathlib.Path
    keys: dict[str, object]
    scores: dict[str, float]
    curves: Curves
    missing: str = ""

    @property
    def data(self) -> tuple[object, ...]:
        """What distinguishes its data from that of other runs."""
        which = sources.SOURCES[self.keys["data.name"]].which
        return tuple(self.keys[f"data.{key}"] for key in ("name", *which))

    @property
    def scored_on(self) -> tuple[object, ...]:
        """Its data and how much of it is scored at which size: scores compare within the same."""
        return (*self.data, *(self.keys[key] for key in SCORED_ON))

    @property
    def page(self) -> pathlib.Path | None:
        """The run's page, or that of the seeds that it was trained with; None without any."""
        whose = [self.folder]
        if self.folder.name.startswith("seed_"):
            whose.append(self.folder.parent)
        pages = [folder / "report" / "index.html" for folder in whose]
        return next((page for page in pages if page.exists()), None)


def find(patterns: str, *, leave_out: pathlib.Path) -> list[Run]:
    """The runs in folders, and in the folders inside those.

    Args:
      patterns: of folders, with commas between them.
      leave_out: a folder in which no run is looked for.

    Returns:
      The runs, by name; one that cannot be read is named in a warning and left out.

    Raises:
      UserError: if there is none.
    """
    matched = [
        pathlib.Path(path)
        for pattern in patterns.split(",")
        for path in glob.glob(os.path.expanduser(pattern.strip()), recursive=True)
    ]
    outside = [path for path in matched if path.resolve() != leave_out.resolve()]
    folders = {
        config.parent.resolve(): config.parent
        for folder in outside
        for depth in range(_DEPTH + 1)
        for config in folder.glob("*/" * depth + CONFIG)
        if leave_out.resolve() not in config.resolve().parents
    }
    runs = [_read(folder) for folder in folders.values()]
    named = _named([run for run in runs if run is not None])
    if not named:
        raise UserError(
            f"--workdirs={patterns} holds no run that can be read: give folders of runs, such as "
            "--workdirs='runs/*', in quotes."
        )
    return named


def _named(runs: Sequence[Run]) -> list[Run]:
    """The runs with the parts of their paths that tell them apart, in order."""
    paths = [run.folder.resolve() for run in runs]
    shared, most = 0, min((len(path.parts) for path in paths), default=0) - 1
    while shared < most and len({path.parts[: shared + 1] for path in paths}) == 1:
        shared += 1
    names = ["/".join(path.parts[shared:]) for path in paths]
    pairs = zip(runs, names, strict=True)
    return sorted(
        (dataclasses.replace(run, name=name) for run, name in pairs), key=lambda run: run.name
    )


def _read(folder: pathlib.Path) -> Run | None:
    """The run; None for one that is broken, or whose seeds have folders of their own."""
    try:
        config = validation.load(folder)
        if config.num_seeds > 1 and any(folder.glob("seed_*/config.json")):
            return None
    except UserError as error:
        _LOG.warning("left out: %s", error)
        return None
    found = _scores(folder)
    config = found.config(config)
    keys = flat(json.loads(config.to_json()))
    scores = kinds.of(config).main_scores(config, found.scores)
    return Run("", folder, keys, scores, _curves(config, folder), found.missing)


def _scores(folder: pathlib.Path) -> workdir_scores.Found:
    try:
        found = workdir_scores.of_run(folder)
    except UserError as error:
        _LOG.warning("counts as not evaluated: %s", error)
        return workdir_scores.Found({})
    if found.missing:
        _LOG.warning("counts as not evaluated: %s", found.missing)
    return found


def _curves(config: ml_collections.ConfigDict, folder: pathlib.Path) -> Curves:
    """Of a seed that was trained with others, its own curves in the file of all."""
    try:
        curves = read_metrics(folder)
        if curves or not folder.name.startswith("seed_"):
            return curves
        ending = f"/seed_{config.seed}"
        return {
            name.removesuffix(ending): curve
            for name, curve in read_metrics(folder.parent).items()
            if name.endswith(ending)
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _LOG.warning("%s/metrics.jsonl cannot be read, and is left out: %s", folder, error)
        return {}


def over_seeds(runs: Sequence[Run]) -> list[tuple[str, Run, dict[str, float]]]:
    """Of runs that differ by their seed only: which seeds, one of them, mean and deviation."""
    alike: dict[str, list[Run]] = {}
    for run in runs:
        if run.scores:
            keys = {key: value for key, value in run.keys.items() if key not in SEED_KEYS}
            alike.setdefault(json.dumps(keys, sort_keys=True), []).append(run)
    joined = []
    for same in alike.values():
        seeds = sorted({run.keys["seed"] for run in same})
        if len(seeds) == len(same) > 1:
            scores = scores_lib.over_seeds([run.scores for run in same])
            joined.append((", ".join(map(str, seeds)), same[0], scores))
    return joined
