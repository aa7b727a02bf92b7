"""Data names that a config may give."""

import math

import ml_collections

from vae_attn.config import require, require_each
from vae_attn.data import digits, dsprites, folder, mnist, mvtec_ad, ucsd_ped1
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError
from vae_attn.models import build as models


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks `config.data`, but for what the training alone uses.

    Raises:
      UserError: naming the first key that is wrong, its value and what it may be.
    """
    require_each(
        config, ("data.images_per_epoch", "data.split_seed"), lambda v: v >= 0, "0 or more"
    )
    require_each(config, ("data.rotation", "data.shift"), math.isfinite, "finite")
    require(config, "data.validation_fraction", lambda v: 0 < v < 1, "between 0 and 1")
    require(config, "data.channels", lambda v: v in (0, 1, 3), "1 (grey), 3 (colour) or 0 (auto)")
    categories = (*mvtec_ad.CATEGORIES, *mvtec_ad.GROUPS) if config.data.name == "mvtec_ad" else ()
    known = f"one of {', '.join(categories)}" if categories else "empty unless data.name=mvtec_ad"
    require(config, "data.category", lambda v: v in (categories or ("",)), known)
    known = ("auto", *dsprites.SOURCES)
    require(config, "data.source", lambda v: v in known, f"one of {', '.join(known)}")


def load(config: ml_collections.ConfigDict) -> AnomalyData:
    """The data set of `config.data`.

    Raises:
      UserError: for an unknown `data.name`, and whatever the loaders find wrong.
    """
    data = config.data
    options = {"validation_fraction": data.validation_fraction, "seed": data.split_seed}
    match data.name:
        case "digits":
            return digits.load(data.digit, **options)
        case "mnist":
            return mnist.load(data.dir, data.digit, **options)
    options |= {"image_size": data.image_size, "cache_dir": data.cache_dir or None}
    match data.name:
        case "mvtec_ad":
            return mvtec_ad.load(data.dir, data.category, **options)
        case "ucsd_ped1":
            return ucsd_ped1.load(data.dir, **options)
        case "folder":
            model = models.architecture(config.model.name, data.image_size)
            channels = data.channels or model.image_shape[-1]
            return folder.load(data.dir, channels=channels, **options)
    raise UserError(
        f"data.name={data.name!r} is unknown; choose one of digits, mnist, mvtec_ad, ucsd_ped1, "
        "folder, dsprites."
    )
