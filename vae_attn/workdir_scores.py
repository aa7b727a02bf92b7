"""The scores in a run's folder, with the model that they belong to: no other is shown beside them.

`evaluation/metrics.json` holds the scores, and `evaluation/scored.json` says of which checkpoint
they are and with which settings they were computed.
"""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from vae_attn import whole_files
from vae_attn.config import default_config
from vae_attn.errors import UserError
from vae_attn.training import telemetry

EVALUATION = "evaluation"  # in the workdir
SCORED = "scored.json"  # in that folder

_SECTIONS = ("attention", "evaluate", "learned")  # of the config, on which scores depend
_ANEW = "--mode=evaluate scores the model that is there"


@dataclasses.dataclass(frozen=True)
class Scored:
    """What scores are of.

    Attributes:
      steps: of the checkpoint; one for each seed.
      parameters: digest of its parameters (`checkpoints.digest`), the same way.
      settings: sections of the config with which it was scored.
    """

    steps: tuple[int, ...]
    parameters: tuple[str, ...]
    settings: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(
        cls,
        steps: Sequence[int],
        parameters: Sequence[str],
        config: ml_collections.ConfigDict,
    ) -> "Scored":
        """The record of models, one for each seed, that were scored with a config."""
        settings = json.loads(config.to_json())
        return cls(tuple(steps), tuple(parameters), {name: settings[name] for name in _SECTIONS})

    def applied_to(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """A config with the settings of the scores in the place of its own."""
        config = config.copy_and_resolve_references()
        config.update(self.settings)
        return config


@dataclasses.dataclass(frozen=True)
class Found:
    """Scores, or why there are none.

    Attributes:
      scores: by name; empty where there are none of the model in question.
      scored: what they are of; None where that is not known.
      missing: a sentence without its full stop that says why scores which are there are not shown.
    """

    scores: dict[str, float]
    scored: Scored | None = None
    missing: str = ""

    def config(self, config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
        """A run's config as it was when the scores were computed."""
        return config if self.scored is None else self.scored.applied_to(config)


def write(workdir: pathlib.Path, scores: Mapping[str, float], scored: Scored) -> None:
    """Writes `evaluation/metrics.json`, and then what the scores are of."""
    folder = workdir / EVALUATION
    write_metrics(scores, folder)
    with whole_files.writing(folder / SCORED) as temporary:
        # The digest of the other file, as a killed command may have written only that.
        text = json.dumps({"metrics": _digest(folder), **dataclasses.asdict(scored)}, indent=2)
        temporary.write_text(text + "\n", encoding="utf-8")


def forget(workdir: pathlib.Path) -> None:
    """Leaves the scores in a folder without a model, as where training begins anew."""
    (workdir / EVALUATION / SCORED).unlink(missing_ok=True)


def of_run(workdir: pathlib.Path, parameters: Sequence[str] = ()) -> Found:
    """The scores of a run if they belong to the model in question.

    Args:
      workdir: of the run.
      parameters: digests of the model, one for each seed. Of a seed whose model is not at hand it
        is the newest checkpoint or the best one; where checkpoints were removed, none is newer.

    Raises:
      UserError: if `metrics.json` is broken.
    """
    scores = read_metrics(workdir / EVALUATION)
    if not scores:
        return Found({})
    scored = _read(workdir)
    if scored is None:
        path = workdir / EVALUATION
        return Found({}, missing=f"{path} does not say which model its scores are of: {_ANEW}")
    folders = [workdir]
    if len(scored.steps) > 1:
        folders = sorted(workdir.glob("seed_*"), key=lambda path: (len(path.name), path.name))
    same = list(map(str.__eq__, scored.parameters, parameters))
    for step, folder in list(zip(scored.steps, folders, strict=False))[len(same) :]:
        choices = _choices(folder)
        same.append(not choices or step in choices)
    return Found(scores, scored) if all(same) else _other_model(workdir, scored)


def write_metrics(metrics: Mapping[str, float], folder: pathlib.Path) -> None:
    """Writes `metrics.json` into a folder, which is created if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(metrics, indent=2, allow_nan=False)
    with whole_files.writing(folder / "metrics.json") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_metrics(folder: pathlib.Path) -> dict[str, float]:
    """The scores in the `metrics.json` of a folder; none where there is no such file.

    Raises:
      UserError: if the file cannot be read, or holds anything else.
    """
    path = folder / "metrics.json"
    try:
        metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if not all(type(value) in (int, float) for value in metrics.values()):
            raise ValueError("not all of it are numbers")
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): --mode=evaluate writes it anew, or move it away."
        ) from error
    return metrics


def _other_model(workdir: pathlib.Path, scored: Scored) -> Found:
    steps = ", ".join(map(str, dict.fromkeys(scored.steps)))
    of_another = f"the scores in {workdir / EVALUATION} are of another model, that of step {steps}"
    return Found({}, missing=f"{of_another}: {_ANEW}")


def _read(workdir: pathlib.Path) -> Scored | None:
    """The record beside the scores; None where there is none that can be used."""
    try:
        kept = json.loads((workdir / EVALUATION / SCORED).read_text(encoding="utf-8"))
        if kept["metrics"] != _digest(workdir / EVALUATION):
            return None
        steps, parameters = tuple(map(int, kept["steps"])), tuple(map(str, kept["parameters"]))
        settings = {name: kept["settings"][name] for name in _SECTIONS}
        scored = Scored(steps, parameters, settings)
        scored.applied_to(default_config().lock())  # raises for what is no config
        return scored if len(steps) == len(parameters) > 0 else None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None


def _digest(folder: pathlib.Path) -> str:
    return hashlib.sha256((folder / "metrics.json").read_bytes()).hexdigest()


def _choices(workdir: pathlib.Path) -> set[int]:
    """Steps of the newest and the best checkpoint of one seed; empty where it keeps none.

    Where no validation loss is known, all that are kept.
    """
    names = [path.name for path in workdir.glob("checkpoints/[0-9]*")]
    steps = {int(name) for name in names if name.isdecimal()}
    if not steps:
        return set()
    try:
        name, curves = "validation_loss", telemetry.read_metrics(workdir)
        if not curves and workdir.name.startswith("seed_"):  # trained with others
            name, curves = f"{name}/{workdir.name}", telemetry.read_metrics(workdir.parent)
        losses = dict(zip(*curves.get(name, ((), ())), strict=True))
    except (UserError, OSError, ValueError, KeyError, TypeError, AttributeError):
        losses = {}
    if not losses:
        return steps  # any of them may be the best
    # The latest of equals, as in `Checkpoints`.
    best = min(sorted(steps, reverse=True), key=lambda step: losses.get(step, float("inf")))
    return {max(steps), best}
