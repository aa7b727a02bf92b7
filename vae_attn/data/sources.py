"""Data sources that a config may name: one row each."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import ml_collections

from vae_attn.config import require, require_each
from vae_attn.data import digits, dsprites, folder, mnist, mvtec_ad, ucsd_ped1
from vae_attn.errors import UserError
from vae_attn.models import build as models

ANOMALY = "normal images, and others to distinguish from them"  # gives an `AnomalyData`
FACTORS = "a grid of ground-truth factors"  # gives a `FactorData`


@dataclasses.dataclass(frozen=True)
class Source:
    """A row.

    Attributes:
      load: from the whole config to the data.
      kind: `ANOMALY` or `FACTORS`.
      categories: that `data.category` may name; empty where there are none.
      groups: of categories, which it may name too, for a run of each.
      members: from the config of a group to those of its runs, by category.
      frames: whether its images are frames of clips.
      which: the keys of `data`, beside the name, that say which data it is.
    """

    load: Callable[[ml_collections.ConfigDict], Any]
    kind: str = ANOMALY
    categories: tuple[str, ...] = ()
    groups: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    members: Callable[[ml_collections.ConfigDict], dict[str, ml_collections.ConfigDict]] = (
        lambda config: _copies(config, of(config).groups[config.data.category])
    )
    frames: bool = False
    which: tuple[str, ...] = ()


def _copies(
    config: ml_collections.ConfigDict, categories: tuple[str, ...]
) -> dict[str, ml_collections.ConfigDict]:
    configs = {category: config.copy_and_resolve_references() for category in categories}
    for category, one in configs.items():
        one.data.category = category
    return configs


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


def _members_of_mvtec_ad(
    config: ml_collections.ConfigDict,
) -> dict[str, ml_collections.ConfigDict]:
    configs = _copies(config, mvtec_ad.present(config.data.dir, config.data.category))
    for category, one in configs.items():
        one.data.update(mvtec_ad.augmentation(category, keep_pose=one.data.keep_pose))
    return configs


SOURCES = {
    "digits": Source(lambda c: digits.load(c.data.digit, **_split(c)), which=("digit",)),
    "mnist": Source(lambda c: mnist.load(c.data.dir, c.data.digit, **_split(c)), which=("digit",)),
    "mvtec_ad": Source(
        lambda c: mvtec_ad.load(c.data.dir, c.data.category, **_files(c)),
        categories=mvtec_ad.CATEGORIES,
        groups=mvtec_ad.GROUPS,
        members=_members_of_mvtec_ad,
        which=("category",),
    ),
    "ucsd_ped1": Source(
        lambda c: ucsd_ped1.load(c.data.dir, frames=c.data.frames, **_files(c)), frames=True
    ),
    "folder": Source(_load_folder, which=("dir",)),
    "dsprites": Source(
        lambda c: dsprites.load_dsprites(
            c.data.dir or None, source=c.data.source, grid=dsprites.GRID
        ),
        FACTORS,
        which=("source",),
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
    source = of(config)
    if config.data.frames > 1:
        video = source.frames and config.data.channels == config.data.frames
        known = f"1 unless data.name={names(lambda s: s.frames)} and data.channels is the same"
        require(config, "data.frames", lambda _: video, known)
    categories = (*source.categories, *source.groups)
    known = f"empty unless data.name={names(lambda s: s.categories)}"
    known = f"one of {', '.join(categories)}" if categories else known
    require(config, "data.category", lambda v: v in (categories or ("",)), known)
    known = ("auto", *dsprites.SOURCES)
    require(config, "data.source", lambda v: v in known, f"one of {', '.join(known)}")


def of(config: ml_collections.ConfigDict) -> Source:
    """The row of `data.name`; raises UserError for an unknown one."""
    name = config.data.name
    if name not in SOURCES:
        raise UserError(f"data.name={name!r} is unknown; choose one of {', '.join(SOURCES)}.")
    return SOURCES[name]


def names(which: Callable[[Source], object]) -> str:
    """The names of some rows, for messages."""
    return " or ".join(name for name, source in SOURCES.items() if which(source))


def load(config: ml_collections.ConfigDict) -> Any:
    """The data set of `config.data`.

    Raises:
      UserError: for an unknown `data.name`, and whatever the loaders find wrong.
    """
    return of(config).load(config)


def is_group(config: ml_collections.ConfigDict) -> bool:
    """Whether a config stands for a run of each category of a group."""
    return config.data.category in of(config).groups


def members(config: ml_collections.ConfigDict) -> dict[str, ml_collections.ConfigDict]:
    """A config for each category of a group, by category; {} where `data.category` is no group.

    Raises:
      UserError: if the data folder holds none of them.
    """
    return of(config).members(config) if is_group(config) else {}
