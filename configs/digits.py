"""One-class VAE on scikit-learn's handwritten digits; nothing to download.

python -m vae_attn.main --config=configs/digits.py        # normal: 3
python -m vae_attn.main --config=configs/digits.py:1      # normal: 1
"""

import ml_collections

from vae_attn.config import default_config, known_variant


def get_config(digit: str = "3") -> ml_collections.ConfigDict:
    """The config; `digit` is the normal class."""
    config = default_config()
    config.data.name = "digits"
    config.data.digit = int(known_variant(digit, "0123456789"))
    config.data.validation_fraction = 0.2
    # Some 110 images are few: small rotations and shifts, which leave a digit what it is.
    config.data.rotation = 10.0
    config.data.shift = 1.5
    config.train.batch_size = 64
    config.train.steps = 600
    config.train.checkpoint_every = 100
    return config
