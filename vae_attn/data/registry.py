"""Data names that a config may give."""

import ml_collections

from vae_attn.data import digits, mnist
from vae_attn.data.dataset import AnomalyData
from vae_attn.errors import UserError


def load(config: ml_collections.ConfigDict) -> AnomalyData:
    """The data set of `config.data`.

    Raises:
      UserError: for an unknown `data.name`, and whatever the loaders find wrong.
    """
    data = config.data
    options = {"validation_fraction": data.validation_fraction, "seed": config.seed}
    match data.name:
        case "digits":
            return digits.load(data.digit, **options)
        case "mnist":
            return mnist.load(data.dir, data.digit, **options)
    raise UserError(f"data.name={data.name!r} is unknown; choose one of digits, mnist.")
