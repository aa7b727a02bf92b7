"""Checks of a config that its types cannot make: names, ranges, layers."""

import math
import pathlib

import ml_collections

from vae_attn import attention
from vae_attn import workdir as workdir_lib
from vae_attn.config import require, require_each
from vae_attn.data import sources
from vae_attn.experiments import kinds, learned_training
from vae_attn.experiments.anomaly import calibration, collected
from vae_attn.models import build
from vae_attn.training import loop, objectives


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks a config; each section where it is used.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    loop.validate(config)
    sources.validate(config)
    build.validate(config, discriminated=objectives.of(config).discriminates)
    _validate_maps(config)
    kinds.validate(config)


def load(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a run, checked.

    Raises:
      UserError: if there is none, or it cannot be read or used.
    """
    config = workdir_lib.read(workdir)
    try:
        validate(config)
    except (ValueError, TypeError) as error:
        raise workdir_lib.unreadable(workdir, error) from error
    return config


def _validate_maps(config: ml_collections.ConfigDict) -> None:
    """Checks `attention`, `evaluate` and `report`, but for layers and checkpoints."""
    require(config, "evaluate.batch_size", lambda v: v > 0, "greater than 0")
    numbers = ("evaluate.max_images", "report.max_images", "report.tensorboard_images")
    numbers += ("attention.projection_steps", "attention.latent_batch_size")
    numbers += ("evaluate.faithful_images",)
    require_each(config, numbers, lambda v: v >= 0, "0 or more")
    require(config, "attention.projection_steps", lambda v: v <= 100, "at most 100")
    several = ("evaluate.styles", "evaluate.layers")
    require_each(config, several, len, "a tuple of at least one name")
    learned_training.validate(config)
    if config.evaluate.select:
        known = "empty or equal to evaluate.layers with evaluate.select, which chooses among those"
        layers = tuple(config.evaluate.layers)
        require(config, "attention.layers", lambda v: tuple(v) in ((), layers), known)
    learned = calibration.LEARNED_STYLES if config.learned.steps else ()
    known = f"of {', '.join((*attention.STYLES, *learned))}"
    if not learned:
        known += f"; with learned.steps also {', '.join(calibration.LEARNED_STYLES)}"
    require(config, "attention.style", lambda v: v in (*attention.STYLES, *learned), known)
    video, videos = sources.of(config).frames, sources.names(lambda source: source.frames)
    known = f"0 or more; 0 unless data.name={videos}, whose images are frames"
    smooths = lambda v: math.isfinite(v) and (v >= 0 if video else v == 0)  # noqa: E731
    require(config, "evaluate.smooth_frames", smooths, known)
    known = f"of {', '.join(attention.STYLES)}"
    require(config, "evaluate.styles", lambda v: all(x in attention.STYLES for x in v), known)
    sizes = collected.MASK_SIZES
    require(config, "evaluate.mask_size", lambda v: v in sizes, f"one of {', '.join(sizes)}")
    kinds = f"one of {', '.join(calibration.KINDS)}"
    require(config, "attention.calibration", lambda v: v in calibration.KINDS, kinds)
    if config.attention.style == "authors_code":
        known = "none with style=authors_code, whose maps depend on their batch by a factor"
        require(config, "attention.calibration", lambda v: v == "none", known)
