"""A trained run from its folder alone, without the data that it learned from."""

import os
import pathlib

import ml_collections

from vae_attn import workdir as workdir_lib
from vae_attn.data import sources
from vae_attn.errors import UserError
from vae_attn.experiments import learned, validation
from vae_attn.experiments.anomaly.calibration import Calibration, Variant, variant_of
from vae_attn.experiments.anomaly.explainer import Explainer
from vae_attn.training import loop, objectives
from vae_attn.training.checkpoints import digest, which_checkpoint
from vae_attn.workdir import CONFIG

CALIBRATION = "calibration.npz"  # in the workdir, beside the checkpoints that it belongs to


def load(workdir: str | os.PathLike[str], which: str = "best") -> Explainer:
    """The explainer of a trained run: `explainer(images)` gives maps and scores.

    Args:
      workdir: of one run; of several seeds or categories, the folder of one of them.
      which: `best` (by validation loss) or `latest` checkpoint.

    Returns:
      The explainer, with the maps (`explainer.variant`) for which the run was last calibrated.

    Raises:
      UserError: if there is no trained run, or none that was calibrated.
    """
    if which not in ("best", "latest"):
        raise UserError(f"which={which!r} must be best or latest.")
    workdir = pathlib.Path(workdir)
    _check_is_a_run(workdir)
    config = validation.load(workdir)
    _check_is_a_run(workdir, config)
    return _load(config, workdir, which)


def load_with(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Explainer:
    """The explainer of a trained run with the config of this call, which has to fit the run's.

    Raises:
      UserError: as `load`, and if the run was made, or calibrated, with another config.
    """
    _check_is_a_run(workdir, config)
    workdir_lib.compare(config, workdir)
    explainer = _load(config, workdir, which_checkpoint(config))
    if config.evaluate.select:  # the run chose
        return explainer
    steps = explainer.calibration.projection_steps
    if (found := _described(explainer.variant, steps)) != (asked := _asked(config)):
        raise UserError(
            f"{workdir} was last calibrated for {found}, and this config asks for {asked}: "
            "run --mode=evaluate with this config first, or give the attention.* of that run."
        )
    return explainer


def _load(config: ml_collections.ConfigDict, workdir: pathlib.Path, which: str) -> Explainer:
    if sources.of(config).kind != sources.ANOMALY:
        raise UserError(
            f"{workdir} is a run on {config.data.name}, where no image is abnormal: it has no "
            "calibration, and only runs on normal images can be loaded."
        )
    variables = loop.restore(config, workdir, which=which).variables
    path = workdir / CALIBRATION
    calibration = Calibration.load(path)
    if calibration is None or calibration.parameters != digest(variables):
        lacks = "is missing or broken" if calibration is None else "belongs to other parameters"
        raise UserError(
            f"{path} {lacks} (wanted: the {which} checkpoint's): run --mode=train or "
            "--mode=evaluate on the run first, which measure it on the data."
        )
    head = _head(workdir, calibration.head) if calibration.head else None
    model = objectives.build_model(config)
    return Explainer.of(model, variables, calibration, **batches(config), head=head)


def _head(workdir: pathlib.Path, wanted: str) -> learned.Head:
    """The head that a run's maps take."""
    path = workdir / learned.FILE
    kept = learned.Head.load(path)
    if kept is None or kept[0].digest != wanted:
        lacks = "is missing or broken" if kept is None else "is another than the calibration's"
        raise UserError(f"{path} {lacks}: run --mode=evaluate on the run first, which trains it.")
    return kept[0]


def batches(config: ml_collections.ConfigDict) -> dict[str, int | None]:
    """How many images, and latents of each, are explained at once."""
    return {
        "batch_size": config.evaluate.batch_size,
        "latent_batch_size": config.attention.latent_batch_size or None,
    }


def _check_is_a_run(workdir: pathlib.Path, config: ml_collections.ConfigDict | None = None) -> None:
    """A group of categories and a run of several seeds have their runs in folders."""
    inside = sorted(path.parent.name for path in workdir.glob("*/config.json"))
    if config is None:
        several = bool(inside) and not (workdir / CONFIG).exists()
    else:
        several = config.num_seeds > 1 or sources.is_group(config)
    if not several:
        return
    names = f" ({', '.join(inside)})" if inside else ""
    raise UserError(
        f"{workdir} holds several runs{names}, and one is needed: give the folder of a category "
        "(with its config, such as configs/mvtec_ad.py:bottle) or of a seed (with --config.seed)."
    )


def _asked(config: ml_collections.ConfigDict) -> str:
    return _described(variant_of(config.attention), config.attention.projection_steps)


def _described(variant: Variant, projection_steps: int) -> str:
    layers = ", ".join(variant.layers)
    return (
        f"{variant.style} at {layers}, calibration={variant.calibration}, "
        f"projection_steps={projection_steps}"
    )
