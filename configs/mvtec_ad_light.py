"""A small convolutional VAE on MVTec-AD, for machines without an accelerator; not in the report.

    python -m vae_attn.main --config=configs/mvtec_ad_light.py:bottle

The variants and `data.dir` are those of configs/mvtec_ad.py. Time and scores: not measured.
"""

from vae_attn.config import default_config, set_category


def get_config(category: str = "bottle"):
    """The config; `category` is one of the fifteen, `all` or `table4`."""
    config = default_config()
    config.data.name = "mvtec_ad"
    config.data.dir = "data/mvtec_ad"
    config.data.image_size = 128
    config.data.validation_fraction = 0.2
    config.data.images_per_epoch = 10_000
    config.data.rotation = 30.0
    set_category(config, category)  # and its mirrors
    config.model.name = "convnet"
    config.model.latents = 64
    config.train.batch_size = 16
    config.train.epochs = 10
    config.train.learning_rate = 1e-3
    config.train.checkpoint_every = 500
    config.attention.layer = "conv2"
    config.evaluate.layers = ("conv1", "conv2", "conv3", "conv4")
    config.evaluate.batch_size = 16
    return config
