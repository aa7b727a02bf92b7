"""A one-channel VAE on magnetic tiles, grey textures that may lie any way round.

    python -m vae_attn.main --config=configs/magnetic_tiles.py --config.data.dir=data/magnetic_tile

`data.dir` holds the magnetic tile defects of Huang et al. (2018) in MVTec-AD's layout: train/good,
test/good, test/<defect> and ground_truth/<defect>. The model and its training are those of
configs/mvtec_ad_light.py, but for the channel, and the tiles are turned and mirrored; nothing was
tuned on tiles. The whole recipe is not measured: after 4,000 steps (docs/results.md) expect a pixel
AUROC of .67 and an average precision of .14, as the VAE does not reconstruct the grain; with
`--config.learned.steps=700 --config.evaluate.select=True` .69 and .15.
"""

import ml_collections

from vae_attn.config import default_config


def get_config() -> ml_collections.ConfigDict:
    """The config."""
    config = default_config()
    config.data.name = "folder"
    config.data.dir = "data/magnetic_tile"
    config.data.validation_fraction = 0.2
    config.data.images_per_epoch = 10_000
    config.data.rotation = 30.0
    config.data.mirror_horizontal = config.data.mirror_vertical = True
    config.data.image_size = 128
    config.data.channels = 1
    config.model.name = "convnet"
    config.model.latents = 64
    config.train.batch_size = 16
    config.train.steps = 9000
    config.train.learning_rate = 3e-4
    config.train.beta = 0.05
    config.train.checkpoint_every = 500
    config.attention.layer = "conv2"
    config.attention.layers = config.evaluate.layers = ("conv1", "conv2", "conv3", "conv4")
    config.attention.calibration = "upper"
    config.evaluate.batch_size = 16
    return config
