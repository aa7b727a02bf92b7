"""A run of a few steps on scikit-learn's digits, whose data is gone afterwards."""

import small_models

from vae_attn.config import default_config
from vae_attn.data import sources
from vae_attn.experiments import run as experiment


def tiny_config():
    config = small_models.use(default_config(), "digits")
    config.data.validation_fraction = 0.2
    config.model.latents = 3
    config.train.batch_size = 16
    config.train.steps = config.train.checkpoint_every = 3
    config.attention.layers = ("conv1", "conv2")
    config.attention.calibration = "upper"
    config.attention.projection_steps = 1
    config.evaluate.batch_size = 4
    return config


def trained(patch, workdir, *, config=None):
    """Trains into `workdir`, after which no data set can be loaded; returns config and data."""
    config = tiny_config() if config is None else config
    data = sources.load(config)
    experiment.run(config, workdir, mode="train")

    def gone(config):
        raise AssertionError("the data set is not needed any more")

    patch.setattr(sources, "load", gone)
    return config, data
