"""Data names that a config may give."""

import ml_collections

from vae_attn.data import digits, folder, mnist, mvtec_ad, ucsd_ped1
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError
from vae_attn.models import build as models


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
            shape = models.image_shape(config.model.name, data.image_size, data.channels)
            return folder.load(data.dir, channels=shape[-1], **options)
    raise UserError(
        f"data.name={data.name!r} is unknown; choose one of digits, mnist, mvtec_ad, ucsd_ped1, "
        "folder, dsprites."
    )
