"""Data sources that a config may name: one row each."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import ml_collections

from vae_attn.config import require, require_each
from vae_attn.data import digits, dsprites, folder, mnist, mvtec_ad, ucsd_ped1
from vae_attn.errors import UserError
from vae_attn.models import build as models

ANOMALY = "normal images, and others to tell from them"  # gives an `AnomalyData`
FACTORS = "a grid of ground-truth factors"  # gives a `FactorData`


@dataclasses.dataclass(frozen=True)
class Source:
    """A row.

    Attributes:
      load: from the whole config to the data.
      kind: `ANOMALY` or `FACTORS`.
    """

    load: Callable[[ml_collections.ConfigDict], Any]
    kind: str = ANOMALY


def _split(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {
        "validation_fraction": config.data.validation_fraction,
        "seed": config.data.split_seed,
    }


def _files(config: ml_collections.ConfigDict) -> dict[str, Any]:
    options = {"image_size": config.data.image_size, "cache_dir": config.data.cache_dir or None}
    return _split(config) | options


def _load_folder(config: ml_collections.ConfigDict):
    shape = models.image_shape(config.model.name, config.data.image_size, config.data.channels)
    return folder.load(config.data.dir, channels=shape[-1], **_files(config))


SOURCES = {
    "digits": Source(lambda c: digits.load(c.data.digit, **_split(c))),
    "mnist": Source(lambda c: mnist.load(c.data.dir, c.data.digit, **_split(c))),
    "mvtec_ad": Source(lambda c: mvtec_ad.load(c.data.dir, c.data.category, **_files(c))),
    "ucsd_ped1": Source(lambda c: ucsd_ped1.load(c.data.dir, frames=c.data.frames, **_files(c))),
    "folder": Source(_load_folder),
    "dsprites": Source(
        lambda c: dsprites.load_dsprites(
            c.data.dir or None, source=c.data.source, grid=dsprites.GRID
        ),
        FACTORS,
    ),
}


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks `config.data`, except for what the training alone uses.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    require_each(
        config, ("data.images_per_epoch", "data.split_seed"), lambda v: v >= 0, "0 or more"
    )
    require_each(config, ("data.rotation", "data.shift"), math.isfinite, "finite")
    require(config, "data.validation_fraction", lambda v: 0 < v < 1, "between 0 and 1")
    require(config, "data.channels", lambda v: v in (0, 1, 3), "1 (grey), 3 (colour) or 0 (auto)")
    require(config, "data.frames", lambda v: v in (1, 3), "1, or 3 for stacks of frames")
    if config.data.frames > 1:
        video = config.data.name == "ucsd_ped1" and config.data.channels == config.data.frames
        known = "1 unless data.name=ucsd_ped1 and data.channels is the same"
        require(config, "data.frames", lambda _: video, known)
    categories = (*mvtec_ad.CATEGORIES, *mvtec_ad.GROUPS) if config.data.name == "mvtec_ad" else ()
    known = f"one of {', '.join(categories)}" if categories else "empty unless data.name=mvtec_ad"
    require(config, "data.category", lambda v: v in (categories or ("",)), known)
    known = ("auto", *dsprites.SOURCES)
    require(config, "data.source", lambda v: v in known, f"one of {', '.join(known)}")


def _source(name: str) -> Source:
    if name not in SOURCES:
        raise UserError(f"data.name={name!r} is unknown; choose one of {', '.join(SOURCES)}.")
    return SOURCES[name]


def kind_of(name: str) -> str:
    """The kind of data that a name gives; raises UserError for an unknown one."""
    return _source(name).kind


def load(config: ml_collections.ConfigDict) -> Any:
    """The data set of `config.data`.

    Raises:
      UserError: for an unknown `data.name`, and whatever the loaders find wrong.
    """
    return _source(config.data.name).load(config)
